"""What was said decides how long to wait; nothing is written down twice."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from audio.endings import SILENCE, Endings, verdict
from lfm2_mm.types import Audio


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "unfinished"),
        ("...", "unfinished"),
        ("can i get a", "unfinished"),
        ("Can I get a large, um,", "unfinished"),
        ("i'd like", "unfinished"),
        ("make me a medium roast", "unfinished"),
        ("give me an iced mocha", "open"),  # with milk, perhaps
        ("give me an iced mocha with", "unfinished"),
        ("give me an iced mocha with a little bit of soy", "unfinished"),
        ("give me an iced mocha with a little bit of soy milk", "finished"),
        ("brew a coffee with cream and", "unfinished"),
        ("brew a coffee with cream and lots of brown sugar", "finished"),
        ("A latte with sweetener, please.", "finished"),
        ("my table is four two", "open"),  # and another digit, perhaps
        ("What time do you open?", "finished"),
        ("thank you", "finished"),
        ("Goodbye!", "finished"),
        ("this", "unfinished"),
        ("a history of salt", "open"),
    ],
)
def test_verdicts(text: str, wanted: str) -> None:
    assert verdict(text) == wanted


@pytest.mark.parametrize("eagerness", ["low", "medium", "high", "auto"])
def test_the_less_is_open_the_shorter_the_silence(eagerness: str) -> None:
    silence = SILENCE[eagerness]  # type: ignore[index]
    assert silence["finished"] < silence["open"] < silence["unfinished"]


def test_what_was_written_down_is_not_heard_again() -> None:
    calls: list[int] = []

    def transcribe(said: Audio, stop: threading.Event) -> str:
        calls.append(len(said.samples))
        return "a latte with milk"

    endings, stop = Endings(transcribe), threading.Event()
    said = Audio(np.ones(100, np.float32), 16_000)
    assert endings.silence(said, "medium", stop) == SILENCE["medium"]["finished"]
    again = Audio(np.ones(100, np.float32), 16_000)
    assert endings.text(again, stop) == "a latte with milk" and calls == [100]
    endings.text(Audio(np.ones(101, np.float32), 16_000), stop)
    assert calls == [100, 101]
    stop.set()  # half a transcript is none
    endings.text(said, stop)
    endings.text(said, stop)
    assert calls == [100, 101, 100, 100]
