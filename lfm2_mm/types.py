"""The nouns every layer shares: parts of a message, events of a reply, sampling. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True, eq=False)
class Image:
    pixels: np.ndarray  # (height, width, 3) uint8 RGB, upright


@dataclass(frozen=True, eq=False)
class Audio:
    samples: np.ndarray  # (n,) float32, mono, -1..1
    rate: int  # Hz


Part = Text | Image | Audio


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, *parts: str | Part) -> Message:
        """A message of `role`; plain strings become Text parts."""
        return cls(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))

    @classmethod
    def user(cls, *parts: str | Part) -> Message:
        return cls.of("user", *parts)

    @classmethod
    def assistant(cls, *parts: str | Part) -> Message:
        return cls.of("assistant", *parts)

    @classmethod
    def system(cls, *parts: str | Part) -> Message:
        return cls.of("system", *parts)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(p.text for p in self.parts if isinstance(p, Text))


@dataclass(frozen=True)
class Sampling:
    """How to generate. temperature 0 is plain greedy; top_k 0 and min_p 0 cut nothing."""

    temperature: float = 0.3
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (self.temperature, 0.0, 100.0),
            "top_k": (self.top_k, 0, 1 << 20),
            "min_p": (self.min_p, 0.0, 1.0),
            "repetition_penalty": (self.repetition_penalty, 1e-3, 100.0),
            "max_tokens": (self.max_tokens, 1, 1 << 20),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie in {low} to {high}")


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0  # of the prompt, found in the state of an earlier turn


@dataclass(frozen=True)
class Timings:
    first_token_s: float
    tokens_per_s: float  # of the completion, after the first token


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True, eq=False)
class AudioChunk:
    turn: int
    samples: np.ndarray  # (n,) float32
    rate: int  # Hz


@dataclass(frozen=True)
class Done:
    reason: Literal["stop", "length", "cancelled"]
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    timings: Timings = field(default_factory=lambda: Timings(0.0, 0.0))


Event = TextDelta | AudioChunk | Done


@dataclass(frozen=True, eq=False)
class Slot:
    """Placeholder ids as the tokenizer writes them, and the embeddings that replace them."""

    ids: tuple[int, ...]
    embeds: torch.Tensor  # (n, hidden): one row for each id that is replaced


class PartEncoder(Protocol):
    """Turns a picture or a recording into a slot of the prompt."""

    accepts: type[Image] | type[Audio]

    def encode(self, part: Any) -> Slot: ...


def text_of(events: Iterable[Event]) -> str:
    """The whole text of a stream of events."""
    return "".join(e.text for e in events if isinstance(e, TextDelta))
