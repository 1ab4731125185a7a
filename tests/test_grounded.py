"""Answers from passages: what is asked, what is cited, and the way from the page to the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from apps import grounded
from apps.demos import library, markup, search, site
from apps.demos.shelf import Shelf
from apps.grounded import Cited
from apps.lanes import Lane
from apps.service import Served, Service
from lfm2_mm.engine import open_engine
from lfm2_mm.errors import ContextExceeded
from lfm2_mm.types import Done, Event, Message, Sampling, TextDelta, text_of
from retrieval.types import Hit
from tests.browser import chromium
from tests.served import serving
from tests.words_encoder import WordsEncoder


def hit(rank: int, text: str, heading: str = "") -> Hit:
    return Hit(rank, 1.0 / rank, rank, rank, f"{rank}.md", 0, len(text), text, None, heading)


def test_the_question_follows_numbered_quotations() -> None:
    hits = [hit(1, " Refunds take five days. ", "Refunds"), hit(2, "Bread.")]
    system, user = grounded.asked(" How long? ", hits, ["a.md", "b.md"])
    assert system.role == "system" and "do nothing" in system.text
    assert user.text == (
        "[1] a.md · Refunds\nRefunds take five days.\n\n[2] b.md\nBread.\n\nQuestion: How long?"
    )


def test_a_text_is_read_once_and_all_together_are_bounded() -> None:
    same = [hit(1, "same"), hit(2, "same"), hit(3, "other")]
    assert [h.rank for h in grounded.chosen(same)] == [1, 3]
    long = [hit(i, str(i) * 2_500) for i in range(1, 9)]
    assert [h.rank for h in grounded.chosen(long)] == [1, 2]
    assert [h.rank for h in grounded.chosen([hit(1, "x" * 100_000)])] == [1]
    many = [hit(i, str(i)) for i in range(1, 30)]
    assert len(grounded.chosen(many)) == grounded.MOST_PASSAGES


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("No number.", [Cited("No number.")]),
        ("Five days [1].", [Cited("Five days "), Cited("[1]", (1,)), Cited(".")]),
        ("[2][1, 3]", [Cited("[2]", (2,)), Cited("[1, 3]", (1, 3))]),
        ("Made up [9] and [0].", [Cited("Made up [9] and [0].")]),
        ("x[1] y[7] z", [Cited("x"), Cited("[1]", (1,)), Cited(" y[7] z")]),
    ],
)
def test_citations_are_found_and_inventions_are_words(text: str, pieces: list[Cited]) -> None:
    assert grounded.cited(text, 3) == pieces


class Narrow:
    """Takes so many passages and no more, as a short context does; says how many it was given."""

    def __init__(self, takes: int) -> None:
        self.takes, self.given = takes, []

    def stream(self, messages: Sequence[Message]) -> Iterator[Event]:
        count = messages[-1].text.count(".md")
        self.given.append(count)
        if count > self.takes:
            raise ContextExceeded("too long")
        yield TextDelta("fine")
        yield Done("stop")


@pytest.mark.parametrize(("takes", "given"), [(6, [6]), (3, [6, 3]), (1, [6, 3, 2, 1])])
def test_what_the_context_does_not_take_is_left_out(takes: int, given: list[int]) -> None:
    hits = [hit(i, f"text {i}") for i in range(1, 7)]
    names = [h.source for h in hits]
    narrow = Narrow(takes)
    events = list(grounded.answered(narrow.stream, "?", hits, names))
    assert text_of(events) == "fine" and isinstance(events[-1], Done)
    assert narrow.given == given
    with pytest.raises(ContextExceeded):
        list(grounded.answered(Narrow(0).stream, "?", hits, names))


def test_an_answer_reaches_the_page_escaped() -> None:
    shown = markup.answer(grounded.cited("<img src=x> ${x} [1]", 1), "<b>")
    assert "<img" not in shown and "${" not in shown and "<b>" not in shown
    assert 'data-hit="0"' in shown


def test_without_a_checkpoint_that_chats_the_page_says_how() -> None:
    assert Service([Served("echo", "chat", open_engine("echo"), Lane("echo"))]).answering() is None
    assert "LFM2-350M" in search.HOW_TO_ANSWER


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The search page, which asks another server through the engine `remote`.

    Behind that is the echo: it says the passages back with their numbers, so it cites them.
    """
    texts = [("refunds.md", "A refund takes five days.", "r"), ("bread.md", "Bread is baked.", "b")]
    monkeypatch.setattr(library, "texts", lambda: iter(texts))
    there = Service([Served("echo", "chat", open_engine("echo"), Lane("echo"))])
    with serving(there) as address, closing(Shelf(tmp_path, WordsEncoder())) as shelf:
        shelf.prepare()
        remote: Any = open_engine(f"{address}v1#echo")
        remote.advice = Sampling(0.0, max_tokens=200)
        chat = Served("far", "chat", remote, Lane("far"))
        served = site.Site([search.page(shelf, chat)], host="127.0.0.1", port=0)
        yield f"{served.address}search/"
        served.close()
        chat.lane.close()
        remote.close()


@pytest.mark.browser
def test_an_answer_cites_what_it_opens(answering: str) -> None:
    with chromium() as visit:
        page = visit.page
        page.goto(answering)
        page.fill("#query textarea, #query input", "how long takes a refund")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hit")
        page.click("#ask-chat")
        page.wait_for_function("document.querySelector('#answer').innerText.includes('check it')")
        said = page.inner_text("#answer .answer")
        assert "refunds.md" in said and "A refund takes five days." in said
        page.locator("#answer .cite").first.click()
        page.wait_for_selector("#source .passage")
        assert "A refund takes five days." in page.inner_text("#source .passage")
        assert visit.elsewhere == [] and visit.errors == []
