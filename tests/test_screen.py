"""What is shown: matches and progress on a terminal, in a pipe, under --json; tables, figures."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from apps.screen import Screen, plain, size, table
from apps.verbs.collection import marked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_matches_are_shown_on_a_terminal_only() -> None:
    matches = (
        SimpleNamespace(start=2, end=6, score=0.9),
        SimpleNamespace(start=2, end=4, score=0.5),
    )
    quiet = Screen(as_json=False, out=io.StringIO(), err=io.StringIO())
    assert marked("a long\n  word", matches, quiet) == "a long word"
    vivid = Screen(as_json=False, out=Terminal(), err=Terminal())
    assert marked("a long word", matches, vivid) == "a \033[1;33mlong\033[0m word"


def test_progress_is_a_bar_on_a_terminal_and_nothing_under_json() -> None:
    for as_json, err, expected in [(False, Terminal(), True), (True, Terminal(), False)]:
        screen = Screen(as_json=as_json, out=io.StringIO(), err=err)
        with screen.progress("bytes") as tell:
            tell(1, 4, "a file")
            tell(4, 4, "b file")
        assert bool(err.getvalue()) is expected


def test_progress_lines_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps import screen

    monkeypatch.setattr(screen, "BETWEEN_LINES_S", 0.0)
    piped = Screen(as_json=False, out=io.StringIO(), err=io.StringIO())
    with piped.progress("bytes") as tell:
        tell(1, 4, "a file")
    assert piped.err.getvalue().startswith("1 of 4 bytes, ")  # type: ignore[attr-defined]
    assert "left: a file" in piped.err.getvalue()  # type: ignore[attr-defined]
    with piped.progress("bytes") as tell:
        tell(12, 6_000_000_000, "the first small file")
    assert "/s: the first small file" in piped.err.getvalue()  # type: ignore[attr-defined]


def test_figures_and_tables() -> None:
    assert [size(n) for n in (0, 999, 1_234, 5e9)] == ["0 bytes", "999 bytes", "1.2 kB", "5.0 GB"]
    assert list(table(("name", "n"), [("a", 1), ("long", "1,000")])) == [
        "name      n",
        "a         1",
        "long  1,000",
    ]
    assert list(table(("name",), [])) == ["name"]
    assert plain("a\tb\x1b[0m\u2028c") == "a b [0m c"
