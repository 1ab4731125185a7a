"""Says back what it was told, word by word: the flow without a model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lfm2_mm.errors import BadInput
from lfm2_mm.types import (
    Audio,
    Done,
    Event,
    Image,
    Message,
    Sampling,
    Text,
    TextDelta,
    Timings,
    Usage,
)


class Echo:
    name = "echo"
    accepts = frozenset({Text, Image, Audio})
    advice = Sampling(temperature=0.0)

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[Event]:
        if not messages:
            raise BadInput("an empty conversation was given; at least one message is needed")
        limit = (sampling or self.advice).max_tokens
        words = messages[-1].text.split()
        prompt = sum(len(m.text.split()) for m in messages)
        start = time.perf_counter()
        for place, word in enumerate(words[:limit]):
            yield TextDelta(word if place == 0 else " " + word)
        seconds = time.perf_counter() - start
        said = min(len(words), limit)
        yield Done(
            "length" if len(words) > limit else "stop",
            Usage(prompt, said),
            Timings(seconds / max(said, 1), said / max(seconds, 1e-9)),
        )

    def close(self) -> None:
        """Nothing is held."""


def open(name_or_path: str | Path, **how: object) -> Echo:
    """The echo engine; it has no settings and ignores where and in what dtype it would run."""
    return Echo()
