"""Conditions that a person gives -> SQL over the catalog's tables. Values are bound, never spelled.

A condition is a key, perhaps with a sign at its end, and a value: `source` `*.pdf`, `date>=`
`2024-01`, `team` `sales`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from lfm2_mm.errors import BadInput
from retrieval.files import as_typed

Value = str | float | os.PathLike[str]
Where = Mapping[str, Value] | Iterable[tuple[str, Value]]

BUILT_IN = ("source", "type", "title", "page", "date")
PAGES = 1_000_000_000  # no document has more, and every engine can compare it
SIGNS = (">=", "<=", ">", "<", "=")
SOURCE = (  # a name may hold what a glob means otherwise
    "(d.source IN (:{0}, :{0}_called) OR d.name IN (:{0}, :{0}_called) OR d.source GLOB :{0} OR "
    "d.name GLOB :{0} OR d.source GLOB :{0}_called OR d.name GLOB :{0}_called)"
)
TYPE = "(d.kind = :{0} OR substr(lower(d.name), -length(:{0}) - 1) = '.' || :{0})"
# As numbers where both sides are, else as text.
META = (
    "EXISTS (SELECT 1 FROM meta m WHERE m.document = d.id AND m.key = :{0}_key AND "
    "CASE WHEN :{0}_number IS NOT NULL AND m.value GLOB '*[0-9]*' AND m.value NOT GLOB '*[^0-9.-]*'"
    " THEN CAST(m.value AS REAL) {1} :{0}_number ELSE m.value {1} :{0} END)"
)
SAME = (
    "EXISTS (SELECT 1 FROM meta m WHERE m.document = d.id AND m.key = :{0}_key AND m.value = :{0})"
)
TYPED = re.compile(r"([^<>=]+)(>=|<=|>|<|=)(.*)", re.DOTALL)
DATE = re.compile(r"(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[T ](\d\d?):(\d\d))?)?)?")


def pairs(where: Where | None) -> tuple[tuple[str, str], ...]:
    """The conditions in order, values as text; a key may stand in several.

    Raises BadInput for what is no pair of a key and one value.
    """
    found = []
    for one in where.items() if isinstance(where, Mapping) else where or ():
        match one:
            case (str() as key, str() | int() | float() | os.PathLike() as value):
                found.append((key, str(value)))
            case _:
                raise BadInput(
                    f"a condition is a key and a value, such as 'source' and '*.pdf'; got {one!r}"
                )
    return tuple(found)


def condition(text: str) -> tuple[str, str] | None:
    """A condition as a person types it; None where there is no sign in it.

    >>> condition("date>=2024-05"), condition("team=sales"), condition("*.pdf")
    (('date>=', '2024-05'), ('team', 'sales'), None)
    """
    if not (found := TYPED.fullmatch(text)):
        return None
    key, sign, value = found.groups()
    return key.strip() + ("" if sign == "=" else sign), value


def is_text(value: str) -> bool:
    """Can it be stored? Bytes of the command line that are not UTF-8 arrive as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def parsed(key: str) -> tuple[str, str]:
    """A key and its sign; without one it is "=".

    >>> parsed("date>="), parsed("team")
    (('date', '>='), ('team', '='))
    """
    for sign in SIGNS:
        if key.endswith(sign):
            return key[: -len(sign)].rstrip(), sign
    return key, "="


def conditions(
    where: Sequence[tuple[str, str]], own: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """SQL over `documents d` and `chunks c`, all of which must hold, and the values to bind.

    own: the metadata keys there are. Raises BadInput for an unknown key or a value that cannot be.
    """
    found: list[str] = []
    values: dict[str, Any] = {}
    for number, (name, value) in enumerate(where):
        key, sign = parsed(name)
        slot = f"w{number}"
        if key in ("source", "type", "title") and sign != "=":
            raise BadInput(f"{key!r} is filtered by {key}=PATTERN, not by {sign!r}")
        if key != "source" and not is_text(value):
            raise BadInput(f"{key}{sign}{value!r} is not UTF-8, and no document has such a value")
        condition, bound = _condition(key, sign, value, slot, own)
        found.append(condition)
        values |= bound
    return found, values


def _condition(
    key: str, sign: str, value: str, slot: str, own: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    match key:
        case "source":
            shown, called = as_typed(value)
            return SOURCE.format(slot), {slot: shown, f"{slot}_called": called}
        case "type":
            return TYPE.format(slot), {slot: value.lower().removeprefix(".")}
        case "title":
            return f"d.title GLOB :{slot}", {slot: value}
        case "page":
            return f"c.page {sign} :{slot}", {slot: _page(value)}
        case "date":
            return _date(sign, value, slot)
    if key not in own:
        known = ", ".join([*BUILT_IN, *own])
        raise BadInput(f"no document has {key!r} to filter by; known here: {known}")
    if sign == "=":
        return SAME.format(slot), {slot: value, f"{slot}_key": key}
    bound = {slot: value, f"{slot}_key": key, f"{slot}_number": number(value)}
    return META.format(slot, sign), bound


def _page(value: str) -> int:
    try:
        page = int(value)
        if abs(page) > PAGES:
            raise ValueError("beyond what is stored")
    except ValueError:
        raise BadInput(
            f"a page is a whole number of at most {PAGES:,}; got {value[:40]!r}"
        ) from None
    return page


def number(value: str) -> float | None:
    """A value that is compared as a number; None for one that is compared as text."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _date(sign: str, value: str, slot: str) -> tuple[str, dict[str, Any]]:
    """When the file was last changed. A value means the whole year, month, day or minute."""
    start, end = period(value)
    low = f"d.mtime_ns >= :{slot}_start"
    high = f"d.mtime_ns < :{slot}_end"
    condition = {
        "=": f"{low} AND {high}",
        ">=": low,
        "<": f"d.mtime_ns < :{slot}_start",
        ">": f"d.mtime_ns >= :{slot}_end",
        "<=": high,
    }[sign]
    return f"({condition})", {f"{slot}_start": start, f"{slot}_end": end}


def period(text: str) -> tuple[int, int]:
    """First nanosecond (Unix time) of a year, month, day or minute of local time, and the end.

    >>> [round((end - start) / 86_400e9) for start, end in map(period, ["2024", "2024-02"])]
    [366, 29]
    """
    found = DATE.fullmatch(text.strip())
    try:
        if not found:
            raise ValueError("not of the form")
        numbers = [int(part) for part in found.groups() if part]
        start = datetime(*[*numbers, 1, 1][: max(3, len(numbers))])  # type: ignore[arg-type]
        return _nanoseconds(start), _nanoseconds(_after(start, len(numbers)))
    except (ValueError, OverflowError, OSError) as error:
        raise BadInput(
            f"{text!r} is no date; give 2024, 2024-05, 2024-05-31 or 2024-05-31T18:00"
        ) from error


def _after(start: datetime, precision: int) -> datetime:
    """The start of the next year (1), month (2), day (3) or minute (5)."""
    match precision:
        case 1:
            return start.replace(year=start.year + 1)
        case 2:
            return (start + timedelta(days=31)).replace(day=1)
        case 3:
            return start + timedelta(days=1)
    return start + timedelta(minutes=1)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.astimezone().timestamp()) * 1_000_000_000
