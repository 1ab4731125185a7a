"""Cut a document into passages along its structure. Knows text and a count; knows no model."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lfm2_mm.errors import BadInput
from retrieval.structure import Chunk, Document, Heading, outline

LONGEST_TOKEN = 16  # characters of one token a passage reckons with; longer runs are cut early
BODY = re.compile(r"[^\W_]")  # what is not a rule or a bracket
PARAGRAPH = re.compile(r"\n(?:[ \t]*\r?\n)+")
ITEM = re.compile(r"\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]|[ \t]*\|)")  # of a list, or a row
SENTENCE = re.compile(r"[.!?…][\"'”’)\]»]*(?=\s)|[。！？；｡][」』”’）]*")
LINE = re.compile(r"\n")
WORD = re.compile(  # Chinese, Japanese and Korean may be parted anywhere but before these marks
    r"\s+|[、，,;：]"
    r"|(?<=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])(?=[^\s、。，．！？：；」』）】〉》])"
)
# A break counts if it leaves at least this share of what would fit: the coarser may cost more room.
PROSE = ((PARAGRAPH, 0.5), (ITEM, 0.5), (SENTENCE, 0.3), (LINE, 0.3), (WORD, 0.0))
LINES = ((PARAGRAPH, 0.5), (LINE, 0.1), (WORD, 0.0))
BREAKS = {"code": LINES, "csv": LINES, "log": LINES, "json": LINES}


@dataclass(frozen=True)
class Section:
    start: int
    end: int
    heading: str
    page: int | None


def cut(document: Document, limit: int, count: Callable[[str], int]) -> list[Chunk]:
    """Passages of at most `limit` tokens, in order and apart, which cover all that is not blank.

    `count(text)` is the number of tokens of a passage, markers included. A passage never crosses a
    heading or a page; it ends, in this order of preference, at a paragraph, sentence, line, word.
    Only a single character that alone exceeds the limit stands as a passage beyond it.
    """
    if limit < 1:
        raise BadInput(f"a passage limit of {limit} tokens was asked; it must be at least 1")
    ruler = Ruler(limit, count)
    breaks = BREAKS.get(document.kind, PROSE)
    text = document.text
    return [
        Chunk(start, end, text[start:end], section.heading, section.page)
        for section in sections(document)
        for start, end in passages(text, section.start, section.end, ruler, breaks)
    ]


def sections(document: Document) -> Iterator[Section]:
    """Stretches between headings and pages; a bare heading joins the deeper one below it."""
    text = document.text
    path: list[Heading] = []
    start, floor = 0, 0  # where the section begins, and where the line of its last heading ends
    for place, heading in joints(document):
        bare = not BODY.search(text, floor, place)
        deeper = heading and path and heading.level > path[-1].level
        if not (bare and deeper and floor > start):
            yield section(document, start, place, path)
            start = place
        floor = place
        if heading:
            path = [above for above in path if above.level < heading.level] + [heading]
            floor = title_end(text, heading)
    yield section(document, start, len(text), path)


def joints(document: Document) -> Iterator[tuple[int, Heading | None]]:
    """Where sections begin, in order: headings, and pages (which have none)."""
    length = len(document.text)
    if document.pages:
        yield from ((min(page, length), None) for page in document.pages)
    else:
        yield from ((min(heading.start, length), heading) for heading in outline(document))


def section(document: Document, start: int, end: int, path: list[Heading]) -> Section:
    page = bisect_right(document.pages, start) or 1 if document.pages else None
    return Section(start, end, " > ".join(filter(None, (h.title for h in path))), page)


def title_end(text: str, heading: Heading) -> int:
    """Where the line with the title ends: it may stand below an overline or a comment."""
    start, title = heading.start, heading.title
    title_at = text.find(title, start, start + len(title) + 300)
    end = text.find("\n", max(start, title_at))
    return len(text) if end < 0 else end


def passages(
    text: str, start: int, end: int, ruler: Ruler, breaks: tuple[tuple[re.Pattern[str], float], ...]
) -> Iterator[tuple[int, int]]:
    """(start, end) of the passages of one section."""
    end = start + len(text[start:end].rstrip())
    while (start := skip_blank(text, start, end, indented=breaks is LINES)) < end:
        stop = ruler.reach(text, start, end)
        if stop < end:
            stop = best_break(text, start, stop, breaks)
            while not ruler.fits(text[start:stop]) and stop - start > 1:
                stop = start + (stop - start + 1) // 2  # a prefix may count more than the whole
        filled = start + len(text[start:stop].rstrip())
        if filled > start:
            yield start, filled
        start = stop


SPACE = re.compile(r"\s")
BLANK = re.compile(r"\s*")


def skip_blank(text: str, start: int, end: int, *, indented: bool) -> int:
    """The next offset that is not blank; the indentation of a line of code belongs to it."""
    found = BLANK.match(text, start, end)
    assert found is not None
    if not indented:
        return found.end()
    newline = text.rfind("\n", start, found.end())
    if newline >= 0:
        return newline + 1
    return start if start == 0 or text[start - 1] == "\n" else found.end()


def best_break(
    text: str, start: int, stop: int, breaks: tuple[tuple[re.Pattern[str], float], ...]
) -> int:
    """The last break of the coarsest kind that lies in the window's later part, else `stop`."""
    window = text[start : stop + 1]  # one character more: does a sentence or word end at `stop`?
    for pattern, share in breaks:
        ends = (found.end() for found in pattern.finditer(window) if found.start() > 0)
        last = max((end for end in ends if end <= stop - start), default=0)
        if last > share * (stop - start):
            return whole_character(text, start, start + last)
    return whole_character(text, start, stop)


def whole_character(text: str, start: int, stop: int) -> int:
    """`stop` moved back so that no accent, joiner or line-end pair is torn off its character."""
    for place in range(stop, max(start, stop - 8), -1):
        torn = unicodedata.combining(text[place]) or text[place] in "\u200d\ufe0f"
        if not torn and text[place - 1] != "\u200d" and text[place - 1 : place + 1] != "\r\n":
            return place
    return stop


def word_end(text: str, place: int, end: int) -> int:
    """The end of the word at `place`, if it is near and not beyond `end`; else `place`."""
    space = SPACE.search(text, place, min(end, place + 24))
    return space.start() if space else place


class Ruler:
    """Finds how far a passage may reach, with few calls of a count that is dear."""

    def __init__(self, limit: int, count: Callable[[str], int]) -> None:
        self.limit = limit
        self.count = count
        self.markers = count("")
        self.ratio = 3.5  # characters per token, learnt on the way

    def fits(self, text: str) -> bool:
        return self.count(text) <= self.limit

    def reach(self, text: str, start: int, end: int) -> int:
        """The furthest offset, nearly, up to `end` to which text from `start` fits the limit."""
        room = max(1, self.limit - self.markers)
        span = min(end - start, room * LONGEST_TOKEN)
        good, bad = 0, span + 1  # characters known to fit, and known not to
        guess = min(span, max(1, int(room * self.ratio)))
        if guess < end - start <= 1.25 * guess and self.fits(text[start:end]):
            return end  # rather than near enough, with a few words left over
        for turn in range(40):  # by proportion, then by halves: ample for any limit
            guess = word_end(text, start + guess, start + bad - 1) - start
            tokens = max(1, self.count(text[start : start + guess]) - self.markers)
            self.ratio = guess / tokens
            if tokens + self.markers <= self.limit:
                good = guess
                if good == span or room - tokens <= room // 16:  # near enough
                    break
            else:
                bad = guess
            if bad - good <= 1:
                break
            aim = int(room * self.ratio * 0.99)
            guess = aim if turn < 6 and good < aim < bad else (good + bad) // 2
        return start + max(1, good)
