"""Conditions as a small tree that every engine can be asked in. Knows no engine and no store.

`parsed` makes it of what a person gives (retrieval/filters.py says what that may be, and the SQL
there is the reference); `holds` evaluates a leaf where an engine cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from retrieval import filters
from retrieval.files import as_typed

NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)")
WILD = re.compile(r"[*?\[]")
SECOND = 1_000_000_000  # in nanoseconds


@dataclass(frozen=True)
class In:
    """A field has one of some values. A metadata field is "meta:KEY"."""

    field: str  # id, document, first, source, name, suffix, kind, title, meta:KEY
    values: tuple[str | int, ...]


@dataclass(frozen=True)
class Compare:
    """A number stands in a relation to another; a field without a number never does."""

    field: str  # id, document, page, seconds (when the file was changed), number:KEY
    sign: str  # > >= < <= =
    value: float


@dataclass(frozen=True)
class Glob:
    """A text field fits a pattern with * ? [a-z] [^a-z]."""

    field: str  # source, name, title
    pattern: str


@dataclass(frozen=True)
class Meta:
    """A metadata value compared as SQLite compares: as numbers where both are, else as text."""

    key: str
    sign: str
    value: str


@dataclass(frozen=True)
class And:
    parts: tuple[Where, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Where, ...]


Where: TypeAlias = In | Compare | Glob | Meta | And | Or
Leaf: TypeAlias = Glob | Meta


class Described(Protocol):
    """The part of a document that conditions look at."""

    @property
    def id(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def meta(self) -> Mapping[str, str]: ...


def parsed(conditions: Sequence[tuple[str, str]], keys: Mapping[str, bool]) -> Where | None:
    """The tree of conditions that all hold; None of none.

    keys: the metadata keys there are, and whether all their values are numbers. Raises BadInput.
    """
    filters.conditions(conditions, list(keys))  # the same errors as everywhere
    parts = tuple(_leaf(*filters.parsed(name), value, keys) for name, value in conditions)
    return And(parts) if parts else None


def _leaf(key: str, sign: str, value: str, keys: Mapping[str, bool]) -> Where:
    match key:
        case "source":
            return source(value)
        case "type":
            low = value.lower().removeprefix(".")
            return Or((In("kind", (low,)), _ending(low)))
        case "title":
            return Glob("title", value) if WILD.search(value) else In("title", (value,))
        case "page":
            return Compare("page", sign, int(value))
        case "date":
            return _date(sign, value)
    if sign == "=":
        return In(f"meta:{key}", (value,))
    if keys[key] and (bound := filters.number(value)) is not None:
        return Compare(f"number:{key}", sign, bound)
    return Meta(key, sign, value)


def source(pattern: str) -> Where:
    """Documents whose source or name fits."""
    meant = tuple(dict.fromkeys(as_typed(pattern)))
    same = Or((In("source", meant), In("name", meant)))
    if not WILD.search(pattern):
        return same
    plain = re.fullmatch(r"\*\.[^*?\[./]*", pattern) and meant == (pattern,)
    if plain:
        return In("suffix", (pattern[2:],))  # what people ask most, in every engine
    return Or((same, *(Glob(field, one) for field in ("source", "name") for one in meant)))


def _ending(low: str) -> Where:
    """Names that end so, in whatever case."""
    if "." not in low and "/" not in low and low.isascii() and not WILD.search(low):
        return In("ending", (low,))
    letters = "".join(f"[{c}{c.upper()}]" if c.isascii() and c.isalpha() else c for c in low)
    return Glob("name", f"*.{letters}")


def _date(sign: str, value: str) -> Where:
    start, end = (bound // SECOND for bound in filters.period(value))
    match sign:
        case "=":
            return And((Compare("seconds", ">=", start), Compare("seconds", "<", end)))
        case ">=" | "<":
            return Compare("seconds", sign, start)
        case ">":
            return Compare("seconds", ">=", end)
    return Compare("seconds", "<", end)


def number_of(value: str) -> float | None:
    """A metadata value as SQLite reads a number; None for one that does not look like one.

    >>> number_of("12.5"), number_of("-3"), number_of("2024-05-01"), number_of("v2")
    (12.5, -3.0, 2024.0, None)
    """
    if not re.search(r"[0-9]", value) or re.search(r"[^0-9.-]", value):
        return None
    found = NUMBER.match(value)
    return float(found.group()) if found else 0.0


def suffix(name: str) -> str:
    """What follows the last dot; "" where there is none."""
    return name.rpartition(".")[2] if "." in name else ""


def regex(pattern: str) -> str:
    """A glob as a regular expression that Python and Rust read alike.

    >>> bool(re.fullmatch(regex("a[^b-c]*.m?"), "ax.y.md")), bool(re.fullmatch(regex("a.b"), "axb"))
    (True, False)
    """
    found, place = [], 0
    while place < len(pattern):
        sign = pattern[place]
        end = pattern.find("]", place + 2 + pattern.startswith("[^", place))
        if sign == "[" and end > 0:
            inner = pattern[place + 1 : end]
            negated, inner = inner.startswith("^"), inner.removeprefix("^")
            inner = re.sub(r"([\\\[\]&~|^])", r"\\\1", inner)
            found.append(f"[{'^' if negated else ''}{inner}]")
            place = end
        else:
            found.append({"*": ".*", "?": "."}.get(sign) or re.escape(sign))
        place += 1
    return f"(?s:{''.join(found)})"


def holds(leaf: Leaf, document: Described) -> bool:
    """Whether a document fits."""
    if isinstance(leaf, Glob):
        return bool(re.fullmatch(regex(leaf.pattern), getattr(document, leaf.field)))
    held = document.meta.get(leaf.key)
    if held is None:
        return False
    bound, number = filters.number(leaf.value), number_of(held)
    if bound is not None and number is not None:
        return _stands(number, leaf.sign, bound)
    return _stands(held, leaf.sign, leaf.value)


def _stands(one: float | str, sign: str, other: float | str) -> bool:
    if one == other:
        return "=" in sign
    return (">" in sign) == (one > other)  # type: ignore[operator]


def resolved(
    where: Where, native: tuple[type, ...], documents: Callable[[], Iterable[Described]]
) -> Where:
    """The same condition of nothing but what an engine evaluates by itself.

    native: of Glob and Meta. What else there is becomes a list of the documents that fit.
    """
    if isinstance(where, (And, Or)):
        parts = tuple(resolved(part, native, documents) for part in where.parts)
        return type(where)(parts)
    if isinstance(where, native) or not isinstance(where, (Glob, Meta)):
        return where
    return In("document", tuple(one.id for one in documents() if holds(where, one)))
