"""What a verb shows: one JSON document, or lines for a person; progress and remarks go to stderr.

Knows streams and terminals; knows no verb.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

from lfm2_mm.errors import BadInput

MOST_PIPED = 4 << 20  # characters; a million tokens at least
BETWEEN_LINES_S = 5.0  # progress lines when no terminal is there to draw a bar on


class Screen:
    """Where the results and the remarks of one verb go."""

    def __init__(self, *, as_json: bool, out: TextIO, err: TextIO) -> None:
        self.as_json = as_json
        self.out = out
        self.err = err
        self.colour = not as_json and out.isatty()

    def result(self, record: Any, lines: Iterable[str]) -> None:
        """Show the result: `record` as the JSON document, or else `lines`."""
        if self.as_json:
            # ASCII only: file names that are not UTF-8 stay valid JSON on every terminal.
            lines = [json.dumps(record, indent=2)]
        self.out.writelines(f"{line}\n" for line in lines)

    def write(self, text: str) -> None:
        """A piece of a result that grows while one watches, without terminal controls."""
        self.out.write("".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc"))
        self.out.flush()

    def say(self, text: str) -> None:
        """A remark beside the result; where nobody can read it any more the work goes on."""
        try:
            self.err.write(f"{text}\n")
            self.err.flush()
        except OSError:  # its reader left, or the disk of a log is full
            self.err = open_nothing("w")

    def mark(self, text: str, *, strong: bool = True) -> str:
        """`text` made to stand out, where the terminal can."""
        if not self.colour:
            return text
        return f"\033[{'1;33' if strong else '33'}m{text}\033[0m"

    @contextmanager
    def progress(self, unit: str) -> Iterator[Callable[[int, int, str], None]]:
        """Gives `tell(done, total, what)`: a bar on a terminal, lines when piped, or nothing."""
        if self.as_json:
            yield lambda done, total, what: None
        elif self.err.isatty():
            with _bar(self.err, unit) as tell:
                yield tell
        else:
            yield _Lines(self.say, unit).tell


@contextmanager
def _bar(stream: TextIO, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    from tqdm import tqdm

    with tqdm(
        file=stream, unit=f" {unit}", unit_scale=True, leave=False, dynamic_ncols=True
    ) as bar:

        def tell(done: int, total: int, what: str) -> None:
            bar.total = total or None
            bar.set_description_str(plain(what)[-40:], refresh=False)
            bar.update(done - bar.n)

        yield tell


class _Lines:
    """Progress as lines, a few seconds apart: for logs and pipes."""

    def __init__(self, say: Callable[[str], None], unit: str) -> None:
        self.say = say
        self.unit = unit
        self.started = self.told = time.monotonic()

    def tell(self, done: int, total: int, what: str) -> None:
        """`done` of `total` units are done; `what` is being worked on."""
        now = time.monotonic()
        if now - self.told < BETWEEN_LINES_S:
            return
        self.told = now
        rate = done / (now - self.started)
        tells = total and 100 * done >= total  # before that the rate is a guess
        left = f", {duration((total - done) / rate)} left" if tells else ""
        of = f" of {total:,}" if total else ""
        self.say(f"{done:,}{of} {self.unit}, {rate:,.1f}/s{left}: {plain(what)}")


def plain(text: str) -> str:
    """`text` on one line without control characters: file names and contents may be hostile."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """Bytes for a person: 1,234 -> '1.2 kB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Rows with aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    numeric = [all(_is_number(line[i]) for line in cells) for i in range(len(head))]
    for line in [list(head), *cells]:
        yield "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def piped() -> str | None:
    """What another program writes into this one; None at a terminal. Raises BadInput."""
    if sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.read(MOST_PIPED + 1)
    except UnicodeDecodeError as error:
        raise BadInput(f"what is piped in is no UTF-8 text: {error.reason}") from error
    if len(text) > MOST_PIPED:
        raise BadInput(
            f"more than {MOST_PIPED:,} characters are piped in, which no checkpoint reads: send "
            "less, or index it and search (`lfm2-mm index`)"
        )
    return text


def open_nothing(mode: str) -> TextIO:
    """A stream in which nothing is, or that forgets what is written."""
    return cast("TextIO", open(os.devnull, mode, encoding="utf-8"))


def open_screen(as_json: bool) -> Screen:
    """The process's own streams; what the terminal cannot show is escaped, never an error."""
    for name in ("stdin", "stdout", "stderr"):  # None where the process was started without it
        if getattr(sys, name) is None:
            setattr(sys, name, open_nothing("r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return Screen(as_json=as_json, out=sys.stdout, err=sys.stderr)
