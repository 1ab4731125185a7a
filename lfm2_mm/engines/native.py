"""The in-process engine: a text checkpoint on our own backbone, with the last turn's state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lfm2_mm import registry
from lfm2_mm.backbone import Backbone
from lfm2_mm.checkpoint import locate
from lfm2_mm.errors import BadInput, ContextExceeded
from lfm2_mm.prompt import ChatTokenizer, TextStream
from lfm2_mm.sampling import pick
from lfm2_mm.types import (
    Done,
    Event,
    Message,
    Sampling,
    Text,
    TextDelta,
    Timings,
    Usage,
)
from lfm2_mm.weights import read_json

PREFILL = 512  # positions a pass: bounds memory, and how long a stop has to wait


class Native:
    """Holds the weights, and the ids and state of the last conversation for the next turn."""

    accepts = frozenset({Text})

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        tokenizer: ChatTokenizer,
        context: int,
        advice: Sampling,
    ) -> None:
        self.name, self.context, self.advice = name, context, advice
        self._backbone, self._tokenizer = backbone, tokenizer
        self._seen: list[int] = []  # ids behind _state
        self._state = backbone.start()

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[Event]:
        """As Engine.stream. Raises ContextExceeded before anything is computed."""
        if not messages:
            raise BadInput("an empty conversation was given; at least one message is needed")
        sampling = sampling or self.advice
        ids = self._tokenizer.render(messages)
        if len(ids) >= self.context:
            raise ContextExceeded(
                f"the conversation is {len(ids)} tokens long; {self.name} takes at most "
                f"{self.context - 1} and a reply: shorten it or start anew"
            )
        return self._generate(ids, sampling)

    def _generate(self, ids: list[int], sampling: Sampling) -> Iterator[Event]:
        generator = None
        if sampling.seed is not None:
            generator = torch.Generator(self._backbone.device).manual_seed(sampling.seed)
        start = time.perf_counter()
        logits, reused = self._prefill(ids)
        text = TextStream(self._tokenizer)
        room = min(sampling.max_tokens, self.context - len(ids))
        first = last = time.perf_counter()
        made, reason = 0, "length"
        while made < room:
            token = pick(logits, sampling, self._seen, generator)
            made += 1
            last = time.perf_counter()
            first = last if made == 1 else first
            if token in self._tokenizer.stops:
                reason = "stop"
                break
            if delta := text.push(token):
                yield TextDelta(delta)
            if made < room:
                logits = self._feed([token])
        if delta := text.flush():
            yield TextDelta(delta)
        rate = (made - 1) / (last - first) if made > 1 else 0.0
        usage = Usage(len(ids), made, reused)
        yield Done("stop" if reason == "stop" else "length", usage, Timings(first - start, rate))

    def _prefill(self, ids: list[int]) -> tuple[Tensor, int]:
        """Feed what the state has not seen yet: last logits, and how many ids were reused."""
        shared = shared_prefix(self._seen, ids[:-1])
        self._state, self._seen = self._state.cut(shared), ids[:shared]
        logits = torch.empty(0)
        for begin in range(shared, len(ids), PREFILL):
            logits = self._feed(ids[begin : begin + PREFILL])
        return logits, shared

    def _feed(self, ids: list[int]) -> Tensor:
        """Go on by `ids`; logits (tokenizer's vocabulary,) after the last of them."""
        embeds = self._backbone.embed(torch.tensor([ids], device=self._backbone.device))
        hidden, self._state = self._backbone.step(embeds, self._state)
        self._seen += ids
        return self._backbone.logits(hidden[:, -1])[0, : self._tokenizer.size]

    def close(self) -> None:
        """Forget the conversation; the weights go with the last reference to the engine."""
        self._seen, self._state = [], self._backbone.start()


def shared_prefix(old: Sequence[int], new: Sequence[int]) -> int:
    """How many ids at the start of both are the same."""
    for place, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return place
    return min(len(old), len(new))


def open(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    active_experts: int | None = None,
) -> Native:
    """Open a text checkpoint by name, hub id or folder."""
    known = registry.find(str(name_or_path)) if registry.knows(str(name_or_path)) else None
    if known is not None and known.kind != "chat":
        raise BadInput(f"{known.name} is a {known.kind} checkpoint; chat takes a text one")
    folder = locate(name_or_path, offline=offline)
    backbone = Backbone.open(folder, device=device, dtype=dtype, active_experts=active_experts)
    context = (known and known.context) or registry.CONTEXT
    return Native(
        known.name if known else str(name_or_path),
        backbone,
        ChatTokenizer(folder),
        min(context, backbone.config.max_positions),
        advice_of(folder, known.sampling if known else None),
    )


def advice_of(folder: Path, published: Sampling | None) -> Sampling:
    """The table's advice, else what generation_config.json says, else the default."""
    if published is not None:
        return published
    path = folder / "generation_config.json"
    stored = read_json(path) if path.is_file() else {}
    names = ("temperature", "top_k", "min_p", "repetition_penalty")
    return replace(Sampling(), **{n: stored[n] for n in names if stored.get(n) is not None})
