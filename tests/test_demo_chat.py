"""The page for conversations in writing: here, and over the engine `remote`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from apps.demos import chat, site
from apps.demos.answers import cost
from apps.demos.conversation import Talk
from apps.lanes import Lane
from apps.service import Served, Service
from lfm2_mm.engine import open_engine
from lfm2_mm.types import Done, Timings, Usage
from tests.browser import chromium
from tests.served import serving


@pytest.fixture
def echo() -> Iterator[Served]:
    """A server of ours, far away; the page asks it through the engine `remote`."""
    there = Service([Served("echo", "chat", open_engine("echo"), Lane("echo"))])
    with serving(there) as address:
        engine: Any = open_engine(f"{address}v1#echo")
        made = Served("far", "chat", engine, Lane("far"))
        yield made
        made.lane.close()
        engine.close()


def test_turns_follow_each_other_and_errors_keep_what_was_written(
    echo: Served, tmp_path: Path
) -> None:
    page = chat.Page(echo)
    *_, (_, shown, talk, told) = page.send({"text": "one two"}, Talk())
    assert shown[-1]["content"] == "one two" and "written" in told
    Pil.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    asked = {"text": "three", "files": [str(tmp_path / "a.png")]}
    *_, (_, shown, talk, _) = page.send(asked, talk)
    assert [m.text for m in talk.messages] == ["one two", "one two", "three", "three"]
    echo.engine.close()
    for wrong in ({"text": " "}, {"text": "x", "files": [__file__]}):
        ((*_, told),) = page.send(wrong, talk)
        assert "note" in told


def test_what_an_answer_took_is_told() -> None:
    done = Done("length", Usage(1234, 5), Timings(0.5, 10.0))
    assert cost(done) == (
        "1,234 tokens read, 5 written; first word after 500 ms, 10 tokens a second; the answer was "
        "cut, it was too long."
    )
    assert cost(None) == "Stopped."


@pytest.mark.browser
def test_a_conversation_in_the_browser(echo: Served) -> None:
    served = site.Site([chat.page(echo)], host="127.0.0.1", port=0)
    try:
        with chromium() as visit:
            page = visit.page
            page.set_default_timeout(120_000)
            page.goto(f"{served.address}chat/")
            for text in ("good morning", "good night"):
                page.fill("#box textarea", text)
                page.keyboard.press("Enter")
                page.wait_for_function(
                    f"document.querySelectorAll('#talk .bot').length && "
                    f"[...document.querySelectorAll('#talk .bot')].at(-1).innerText"
                    f".includes('{text}')"
                )
                page.wait_for_function(
                    "document.querySelector('#told').innerText.includes('written')"
                )
            assert visit.elsewhere == [] and visit.errors == []
    finally:
        served.close()
