"""A conversation as a speech model reads it: what stands at each position. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor


class Flag(IntEnum):
    """What stands at a position; the published numbers."""

    TEXT = 1
    HEARD = 2
    SPOKEN = 3


@dataclass(frozen=True, eq=False)
class Heard:
    """One position of a recording, the `offset`-th of it."""

    mel: Tensor  # (mel frames, features), of the whole recording
    offset: int


Frame = tuple[int, ...]  # one code for each codebook
Item = int | Frame | Heard  # a text id, a frame, a position of a recording


@dataclass
class History:
    """Grows at its end, can be cut back. `factor` mel frames of a recording are a position."""

    factor: int = 8
    items: list[Item] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def add_text(self, ids: Iterable[int]) -> None:
        self.items += ids

    def add_heard(self, mel: Tensor) -> None:
        """One recording, (mel frames, features)."""
        self.items += [Heard(mel, i) for i in range(-(-len(mel) // self.factor))]

    def add_spoken(self, frame: Sequence[int]) -> None:
        self.items.append(tuple(frame))

    def copy(self) -> History:
        """An independent history of the same contents."""
        return History(self.factor, [*self.items])

    def boundary(self, length: int) -> int:
        """The last place up to `length` that no recording lies across."""
        item = self.items[length] if length < len(self.items) else None
        return length - item.offset if isinstance(item, Heard) else length

    def cut(self, length: int) -> None:
        """Forget every position from `length` on. Raises ValueError inside of a recording, which
        goes whole or not at all."""
        if not 0 <= length <= len(self):
            raise ValueError(f"cut to {length}: the history has {len(self)} positions")
        if self.boundary(length) != length:
            raise ValueError(f"position {length} lies inside of a recording")
        del self.items[length:]

    # The reference's own parts of the same:

    @property
    def flags(self) -> list[Flag]:
        return [flag_of(item) for item in self.items]

    @property
    def text(self) -> list[int]:
        return [item for item in self.items if isinstance(item, int)]

    @property
    def spoken(self) -> list[Frame]:
        return [item for item in self.items if isinstance(item, tuple)]

    @property
    def heard(self) -> list[Tensor]:
        return [item.mel for item in self.items if isinstance(item, Heard) and not item.offset]


def flag_of(item: Item) -> Flag:
    if isinstance(item, int):
        return Flag.TEXT
    return Flag.SPOKEN if isinstance(item, tuple) else Flag.HEARD
