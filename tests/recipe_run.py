"""Runs a recipe in this process and keeps what it says at each step."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import pytest

Train = Callable[[Namespace, Callable[[str], None]], object]


def steps_told(train: Train, args: Namespace, stop_at: int | None = None) -> list[str]:
    """The lines of steps. `stop_at`: interrupted after so many, as by Ctrl-C."""
    told: list[str] = []

    def say(line: str) -> None:
        if line.startswith("step "):
            told.append(line)
            if len(told) == stop_at:
                raise KeyboardInterrupt

    if stop_at is None:
        train(args, say)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(args, say)
    return told
