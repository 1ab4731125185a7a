"""Text while it is taken out of a format, with its headings. Knows no format."""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrieval.structure import Heading

MAX_CHARACTERS = 64 << 20  # of one document: what fits in memory several times over
SURROGATE = re.compile(r"[\ud800-\udfff]")


class Refused(Exception):
    """Why a file gives no text; the message is for people. `read` adds the name of the file."""


@dataclass(frozen=True)
class Extract:
    text: str
    title: str = ""
    headings: tuple[Heading, ...] = ()
    pages: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


class Writer:
    """Joins pieces of text with single blanks and at most the line breaks asked for."""

    def __init__(self, notes: tuple[str, ...] = ()) -> None:
        self.notes = notes
        self.title = ""
        self.length = 0
        self._parts: list[str] = []
        self._headings: list[Heading] = []
        self._breaks = 0  # line breaks due before the next text
        self._blank = False  # whether a blank is due before it
        self._opened: tuple[int, int] | None = None  # level, and the first part of a heading

    def gap(self, lines: int) -> None:
        """Begin a new line (1) or paragraph (2), unless nothing was written since the last."""
        self._breaks = max(self._breaks, lines)

    def flow(self, text: str) -> None:
        """Add running text: blanks and line ends in it are worth one blank."""
        words = text.split()
        if not words:
            self._blank = self._blank or bool(text)
            return
        self._blank = self._blank or text[0].isspace()
        self.write(" ".join(words))
        self._blank = text[-1].isspace()

    def write(self, text: str) -> None:
        """Add text as it is."""
        if not text:
            return
        if self.length and self._breaks:
            self._put("\n" * self._breaks)
        elif self.length and self._blank:
            self._put(" ")
        self._breaks, self._blank = 0, False
        self._put(text)

    def _put(self, text: str) -> None:
        self.length += len(text)
        if self.length > MAX_CHARACTERS:
            raise Refused(f"more than {MAX_CHARACTERS:,} characters of text: split it")
        self._parts.append(text)

    def mark(self, level: int, title: str) -> None:
        """A section begins with the next text, under a title that is not itself part of it."""
        start = self.length + (self._breaks if self.length else 0)
        self._headings.append(Heading(start, level, title))

    def open_heading(self, level: int) -> None:
        """What is written from here until `close_heading` is a title."""
        self.gap(2)
        self._opened = (level, len(self._parts))

    def close_heading(self) -> None:
        if self._opened is None:
            return
        level, first = self._opened
        self._opened = None
        written = "".join(self._parts[first:])
        title = " ".join(written.split())
        if title:
            start = self.length - len(written.lstrip("\n"))
            self._headings.append(Heading(start, level, title))
        self.gap(2)

    def extract(self) -> Extract:
        # A lone surrogate (from an escape) cannot be stored as UTF-8; its stand-in is as long.
        text = SURROGATE.sub("\ufffd", "".join(self._parts))
        headings = tuple(h._replace(title=SURROGATE.sub("\ufffd", h.title)) for h in self._headings)
        title = self.title or (headings[0].title if headings and headings[0].start == 0 else "")
        return Extract(text, title, headings, notes=self.notes)
