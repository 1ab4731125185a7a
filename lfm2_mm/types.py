"""The nouns every layer shares: parts of a message, events of a reply, sampling. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import numpy as np
    import torch

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Text:
    text: str


class Pixels(Protocol):
    """Where a picture's pixels come from. What can wait until they are fewer is done last."""

    @property
    def turned(self) -> bool:
        """Whether the stored rows are columns of the upright picture."""

    def stored(self, height: int, width: int) -> np.ndarray:
        """(h, w, 3) uint8 as stored; with a size, also in that way, perhaps fewer but no less."""

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        """Stored pixels, resized or not, upright and in sRGB."""

    def key(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Image:
    """A picture. Its size, upright, is known at once; its pixels are decoded when asked for."""

    height: int  # pixels
    width: int
    source: Pixels
    remarks: tuple[str, ...] = ()  # what a person should know, such as: only the first frame

    @classmethod
    def open(cls, given: object) -> Image:
        """The picture in a path, bytes, PIL image, numpy array or data URL. Raises BadPicture."""
        from lfm2_mm import pictures

        return pictures.open_picture(given)

    def decode(self, height: int = 0, width: int = 0) -> np.ndarray:
        """(h, w, 3) uint8 sRGB, upright, decoded anew. Raises BadPicture for damaged data.

        All pixels; or, where at least `height` x `width` are asked, fewer if that is faster.
        """
        least = (width, height) if self.source.turned else (height, width)
        return self.source.finish(self.source.stored(*least))

    @cached_property
    def key(self) -> str:
        """The same for the same content, to find again what was computed of it."""
        return self.source.key()


@dataclass(frozen=True, eq=False)
class Audio:
    samples: np.ndarray  # (n,) float32, mono, -1..1
    rate: int  # Hz

    @classmethod
    def open(cls, source: object, rate: int | None = None) -> Audio:
        """The recording in a path, bytes, an open binary file, or an array with its `rate`.

        Channels are averaged. Raises Unreadable, BadInput (lfm2_mm/sounds.py has the limits).
        """
        from lfm2_mm.sounds import open_recording

        return open_recording(source, rate)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write .wav (16 bit), .flac, .ogg or .mp3; the file appears whole or not at all."""
        from lfm2_mm.sounds import save_recording

        return save_recording(self, path)

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


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
    """How to generate. temperature 0 is plain greedy; top_k 0, top_p 1, min_p 0 cut nothing."""

    temperature: float = 0.3
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (self.temperature, 0.0, 100.0),
            "top_k": (self.top_k, 0, 1 << 20),
            "top_p": (self.top_p, 0.0, 1.0),
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
    image_tokens: int = 0  # of the prompt, without the structural ones around them


@dataclass(frozen=True)
class Timings:
    first_token_s: float
    tokens_per_s: float  # of the completion, after the first token
    vision_s: float = 0.0  # part of first_token_s: encoding pictures that were not encoded yet


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True, eq=False)
class AudioChunk:
    turn: int
    samples: np.ndarray  # (n,) float32
    rate: int  # Hz


@dataclass(frozen=True)
class Progress:
    """How far the work before the first token is. Closing the stream here stops it."""

    what: Literal["vision", "prompt"]
    done: int  # tokens
    total: int


@dataclass(frozen=True)
class Done:
    reason: Literal["stop", "length", "cancelled"]
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    timings: Timings = field(default_factory=lambda: Timings(0.0, 0.0))


Event = TextDelta | AudioChunk | Progress | Done


@dataclass(frozen=True, eq=False)
class Slot:
    """What stands in a prompt for a picture or a recording, known before anything is computed."""

    ids: tuple[int, ...]  # as the tokenizer writes them, structural ones included
    marker: int  # the id that every position has which a row of the encoding replaces
    key: str  # of equal keys the encodings are equal
    plan: Any = None  # how the part will be encoded, in its encoder's own words

    @property
    def tokens(self) -> int:
        """Positions that are replaced: rows of the encoding."""
        return self.ids.count(self.marker)


class PartEncoder(Protocol):
    """Turns pictures or recordings into slots of a prompt, and slots into embeddings."""

    accepts: type[Image] | type[Audio]
    kind: str  # of an item of a content list, as chat templates know it: "image"
    marker: str  # what a template writes for such an item: "<image>"

    def plan(self, parts: Sequence[Any]) -> list[Slot]:
        """Slots for all parts of one prompt; no tensor is made. Raises BadInput."""
        ...

    def encode(self, part: Any, slot: Slot) -> Iterator[torch.Tensor]:
        """Embeddings in portions (n, hidden), in all `slot.tokens` rows, in order.

        Between two portions the work can be stopped.
        """
        ...


def text_of(events: Iterable[Event]) -> str:
    """The whole text of a stream of events."""
    return "".join(e.text for e in events if isinstance(e, TextDelta))
