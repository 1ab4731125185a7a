"""The in-process engine: a checkpoint on our own backbone, with the last turn's state.

Knows ids and the embeddings that replace some of them; what they show, only a PartEncoder knows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lfm2_mm import registry
from lfm2_mm.backbone import Backbone
from lfm2_mm.checkpoint import locate
from lfm2_mm.errors import BadInput, ContextExceeded
from lfm2_mm.prompt import ChatTokenizer, Place, Prompt, TextStream
from lfm2_mm.sampling import pick
from lfm2_mm.state import State
from lfm2_mm.types import (
    Done,
    Event,
    Message,
    PartEncoder,
    Progress,
    Sampling,
    Text,
    TextDelta,
    Timings,
    Usage,
)
from lfm2_mm.weights import read_json

PREFILL = 512  # positions a pass: bounds memory, and how long a stop has to wait


@dataclass(frozen=True, eq=False)
class Read:
    """What was read of a conversation, and the state after it. A value, as the state is one."""

    prompt: Prompt
    state: State

    def cut(self, length: int) -> Read:
        return Read(self.prompt.cut(length), self.state.cut(length))


class Native:
    """Holds the weights, and what was read of the last conversation for its next turn.

    Several streams may be open at a time, in several threads too: each goes on from its own state.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        tokenizer: ChatTokenizer,
        context: int,
        advice: Sampling,
        encoder: PartEncoder | None = None,
    ) -> None:
        """`encoder` takes the parts that are not text; None: only text is read."""
        self.name, self.context, self.advice = name, context, advice
        self.accepts = frozenset({Text, encoder.accepts} if encoder else {Text})
        self._backbone, self._tokenizer, self._encoder = backbone, tokenizer, encoder
        self._last = Read(Prompt(), backbone.start())
        self._stepping = threading.Lock()  # states that share buffers are stepped one at a time

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The conversation as `stream` would read it; nothing is computed.

        Raises BadInput, and ContextExceeded with both lengths; slots count as what they will take.
        """
        if not messages:
            raise BadInput("an empty conversation was given; at least one message is needed")
        prompt = self._tokenizer.render(messages, self._encoder)
        if len(prompt) >= self.context:
            of_slots = prompt.slot_tokens
            told = f", {of_slots} of them for pictures or recordings" if of_slots else ""
            lower = ", lower their budget" if of_slots else ""
            raise ContextExceeded(
                f"the conversation is {len(prompt)} tokens long{told}; {self.name} takes at most "
                f"{self.context - 1} and a reply: shorten it{lower} or start anew"
            )
        return prompt

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[Event]:
        """As Engine.stream. Raises ContextExceeded before anything is computed."""
        return self._generate(self.prompt(messages), sampling or self.advice)

    def _generate(self, prompt: Prompt, sampling: Sampling) -> Iterator[Event]:
        start = time.perf_counter()
        read = self._last.cut(min(self._last.prompt.shared(prompt), len(prompt) - 1))
        reused = len(read.prompt)
        rows, vision_s = yield from self._encode([p for p in prompt.places if p.end > reused])
        logits, read = yield from self._prefill(prompt, read, rows)
        came: list[float] = []
        reason = yield from self._decode(logits, read, sampling, came)
        rate = (len(came) - 1) / (came[-1] - came[0]) if len(came) > 1 else 0.0
        usage = Usage(len(prompt), len(came), reused, prompt.slot_tokens)
        yield Done(reason, usage, Timings(came[0] - start, rate, vision_s))

    def _encode(
        self, places: Sequence[Place]
    ) -> Generator[Progress, None, tuple[dict[Place, Tensor], float]]:
        """The embeddings of `places`, and the seconds they took."""
        rows: dict[Place, Tensor] = {}
        done, total, seconds = 0, sum(place.slot.tokens for place in places), 0.0
        for place in places:
            assert self._encoder is not None
            portions = self._encoder.encode(place.part, place.slot)
            pieces: list[Tensor] = []
            while sum(map(len, pieces)) < place.slot.tokens:
                yield Progress("vision", done, total)
                start = time.perf_counter()
                pieces.append(next(portions))
                seconds += time.perf_counter() - start
                done += len(pieces[-1])
            pieces.extend(portions)  # nothing more comes, but the encoder can finish and remember
            rows[place] = torch.cat(pieces)
        return rows, seconds

    def _prefill(
        self, prompt: Prompt, read: Read, rows: Mapping[Place, Tensor]
    ) -> Generator[Progress, None, tuple[Tensor, Read]]:
        """Read on to the end of `prompt`, with `rows` in its places; the logits after it."""
        logits, start = torch.empty(0), len(read.prompt)
        for begin in range(start, len(prompt), PREFILL):
            if begin > start:
                yield Progress("prompt", begin - start, len(prompt) - start)
            known = prompt.cut(begin + PREFILL)
            embeds = self._embed(known.ids[begin:])
            for place, encoded in rows.items():
                lay(encoded, place, embeds[0], begin)
            logits, read = self._feed(embeds, read, known)
        return logits, read

    def _decode(
        self, logits: Tensor, read: Read, sampling: Sampling, came: list[float]
    ) -> Generator[TextDelta, None, Literal["stop", "length"]]:
        """The reply after `logits`, token by token; `came` gets the time of each."""
        generator = None
        if sampling.seed is not None:
            generator = torch.Generator(self._backbone.device).manual_seed(sampling.seed)
        text = TextStream(self._tokenizer)
        room = min(sampling.max_tokens, self.context - len(read.prompt))
        reason: Literal["stop", "length"] = "length"
        while True:
            token = pick(logits, sampling, read.prompt.ids, generator)
            came.append(time.perf_counter())
            if token in self._tokenizer.stops:
                reason = "stop"
                break
            if delta := text.push(token):
                yield TextDelta(delta)
            if len(came) == room:
                break
            logits, read = self._feed(self._embed((token,)), read, read.prompt.then((token,)))
        if delta := text.flush():
            yield TextDelta(delta)
        return reason

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """ids (n) -> (1, n, hidden)."""
        return self._backbone.embed(torch.tensor([ids], device=self._backbone.device))

    def _feed(self, embeds: Tensor, read: Read, known: Prompt) -> tuple[Tensor, Read]:
        """Read on by `embeds`, so that `known` is read: the last logits (vocabulary,)."""
        with self._stepping:
            hidden, state = self._backbone.step(embeds, read.state)
        self._last = read = Read(known, state)
        return self._backbone.logits(hidden[:, -1])[0, : self._tokenizer.size], read

    def close(self) -> None:
        """Forget the conversation; the weights go with the last reference to the engine."""
        self._last = Read(Prompt(), self._backbone.start())


def lay(rows: Tensor, place: Place, embeds: Tensor, begin: int) -> None:
    """Put the rows (tokens, hidden) of a place over `embeds` (n, hidden) of `begin` and later."""
    low, high = max(begin, place.start), min(begin + len(embeds), place.end)
    if low >= high:
        return
    ids, marker = place.slot.ids, place.slot.marker
    at = [i - begin for i in range(low, high) if ids[i - place.start] == marker]
    skipped = ids[: low - place.start].count(marker)
    embeds[at] = rows[skipped : skipped + len(at)].to(embeds)


def open(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    active_experts: int | None = None,
) -> Native:
    """Open a text checkpoint by name, hub id or folder."""
    known = row_of(name_or_path)
    if known is not None and known.kind != "chat":
        raise BadInput(f"{known.name} is a {known.kind} checkpoint; chat takes a text one")
    folder = locate(name_or_path, offline=offline)
    backbone = Backbone.open(folder, device=device, dtype=dtype, active_experts=active_experts)
    return Native(
        known.name if known else str(name_or_path),
        backbone,
        ChatTokenizer(folder),
        context_of(known, backbone),
        advice_of(folder, known.sampling if known else None),
    )


def row_of(name_or_path: str | Path) -> registry.Checkpoint | None:
    """The registry's row of a name it knows; None for a folder or a foreign hub id."""
    name = str(name_or_path)
    return registry.find(name) if registry.knows(name) else None


def context_of(known: registry.Checkpoint | None, backbone: Backbone) -> int:
    """Tokens that prompt and reply may have together."""
    told = (known and known.context) or registry.CONTEXT
    return min(told, backbone.config.max_positions)


def advice_of(folder: Path, published: Sampling | None) -> Sampling:
    """The table's advice, else what generation_config.json says, else the default."""
    if published is not None:
        return published
    path = folder / "generation_config.json"
    stored = read_json(path) if path.is_file() else {}
    names = ("temperature", "top_k", "min_p", "repetition_penalty")
    return replace(Sampling(), **{n: stored[n] for n in names if stored.get(n) is not None})
