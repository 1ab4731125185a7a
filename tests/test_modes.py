"""The published orders of text and frames, told as strings: t text, a frame, and what steers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audio.chat import Marks
from audio.generation import Recital
from audio.modes import Interleaved, Mode, Sequential

AUDIO_START, TEXT_END, IM_END, WORD = 128, 130, 7, 300
TOKENS = {"t": WORD, "S": AUDIO_START, "T": TEXT_END, ".": IM_END}


def told(mode: Mode, events: str) -> str:
    """What the mode asks for at each step: t or a. `events` say what is then made: a token of
    TOKENS, a frame, or E, the frame that ends the audio; they must be of the kind asked for."""
    asked = ""
    for event in events:
        asked += "a" if mode.speaking else "t"
        if mode.speaking:
            assert event in "aE", f"{asked}: a frame was asked for, {event} is scripted"
            mode.after_frame(event == "E")
        else:
            mode.after_text(TOKENS[event])
    return asked + ("a" if mode.speaking else "t")


def interleaved(n_text: int = 6, n_audio: int = 12) -> Interleaved:
    return Interleaved(n_text, n_audio, TEXT_END)


@pytest.mark.parametrize(
    ("events", "asked"),
    [
        ("ttt", "tttt"),
        ("Saaa", "taaaa"),
        ("SaaEtt", "taaattt"),
        ("ttSEtSa", "tttattaa"),
        ("T", "tt"),  # the end of text means nothing here
    ],
)
def test_sequential(events: str, asked: str) -> None:
    assert told(Sequential(AUDIO_START), events) == asked


@pytest.mark.parametrize(
    ("n_text", "n_audio", "events", "asked"),
    [
        (6, 12, "tttttt" + "a" * 12 + "tt", "tttttt" + "a" * 12 + "ttt"),
        (6, 9, "tttttt" + "a" * 9 + "t" * 6 + "a", "tttttt" + "a" * 9 + "t" * 6 + "aa"),
        (1, 2, "taataa", "taataat"),
        # The text ends inside of a run: frames at once, and no text again until the audio ends.
        (6, 12, "ttT" + "a" * 30, "ttt" + "a" * 31),
        (6, 12, "T" + "a" * 13 + "E", "t" + "a" * 14 + "t"),
        # After both have ended one step of text; when it does not end the turn, audio goes on.
        (6, 12, "TaEtaEt", "taataata"),
        # The audio ends first: `left` runs on, so nine more steps of text follow three frames.
        (6, 12, "tttttt" + "aaE" + "t" * 9, "tttttt" + "aaa" + "t" * 9 + "a"),
        (6, 12, "tttttt" + "E" + "t" * 11, "tttttt" + "a" + "t" * 11 + "a"),
        # It ends with the last frame of a run: the next run of text is whole.
        (2, 3, "ttaaE" + "tt", "ttaaa" + "tt" + "a"),
        # A text end in a run that followed an early audio end.
        (2, 3, "ttEtTa", "tt" + "att" + "aa"),
        (6, 12, "ttSttt", "tttttta"),  # <|audio_start|> is a token like any other here
    ],
)
def test_interleaved(n_text: int, n_audio: int, events: str, asked: str) -> None:
    assert told(interleaved(n_text, n_audio), events) == asked


@given(st.integers(1, 7), st.integers(1, 13), st.lists(st.integers(0, 9), max_size=80))
def test_interleaved_is_the_specification_step_by_step(
    n_text: int, n_audio: int, choices: list[int]
) -> None:
    """Beside a plain rendering of the specification's text, over any course of events."""
    mode = interleaved(n_text, n_audio)
    speaking, left, text_done = False, n_text, False
    for choice in choices:
        assert mode.speaking == speaking
        left -= 1
        if speaking:
            ended = choice == 0
            mode.after_frame(ended)
            if left == 0 and not text_done:
                speaking, left = False, n_text
            if ended:
                speaking = False
        else:
            token = TEXT_END if choice == 0 else WORD
            mode.after_text(token)
            text_done = text_done or token == TEXT_END
            if left == 0 or text_done:
                speaking, left = True, n_audio


def test_which_end_belongs_to_the_reply() -> None:
    assert Sequential(AUDIO_START).keeps_end and not interleaved().keeps_end


def test_given_words_come_when_silence_is_less_likely_than_all_else_and_then_the_end() -> None:
    marks = Marks(start=1, turn_end=IM_END, audio_start=AUDIO_START, text_end=TEXT_END, pad=9)
    recital = Recital([WORD, WORD + 1], marks)
    waits, comes = torch.zeros(400), torch.zeros(400)
    waits[9] = 8.0  # against 399 others, which weigh 6 together
    comes[[9, 77]] = torch.tensor([5.0, 8.0])  # the model expects 77, which is not given
    made = [recital(logits) for logits in (waits, waits, comes, waits, comes, waits)]
    assert made == [WORD, 9, WORD + 1, 9, TEXT_END, IM_END]
    with pytest.raises(ValueError, match="fills text slots"):
        Recital([WORD], replace(marks, pad=None))
