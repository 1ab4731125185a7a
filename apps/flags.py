"""What a flag's text may be, for argparse: each takes the text and gives the value, or says what
would be valid. Knows no verb."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable


def whole(least: int, most: int = 1 << 62) -> Callable[[str], int]:
    """A whole number from `least`, to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            upper = "up" if most == 1 << 62 and value < least else f"to {most:,}"
            raise ArgumentTypeError(f"{text!r} is not a whole number from {least} {upper}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """A number in `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return value

    return parse


def pair(text: str) -> tuple[str, str]:
    """A key and a value, as key=value."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def filled(text: str) -> str:
    """Anything but nothing, which a script's unset variable leaves."""
    if text.strip():
        return text
    raise ArgumentTypeError("nothing is in it: give a value, or leave the flag out")


def words(text: str) -> str:
    """Text. Bytes that are not UTF-8 arrive as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"{text[:40]!r} is not UTF-8 text") from None
    return text


def origin(text: str) -> str:
    """What a browser tells of a page's address, or * for any."""
    if re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@]+", text):
        return text
    raise ArgumentTypeError(
        f"{text!r} is no origin such as https://example.org (no path, no slash at its end), nor *"
    )


def condition(text: str) -> tuple[str, str]:
    """A key and a value with a sign between, date>=2024-05; the sign goes with the key."""
    from retrieval import filters  # only where a filter is given

    if found := filters.condition(text):
        return found
    raise ArgumentTypeError(
        f"{text!r} is not of the form key=value, or key>=value with one of >= <= > <"
    )
