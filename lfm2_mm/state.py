"""What a backbone remembers of the positions it has seen. Knows buffers, no arithmetic.

Every attention layer keeps keys and values, every convolution layer its gated inputs, by position.
Keeping the convolution's inputs of all positions, not only the last two, is what lets a state be
cut back to any earlier length; it costs hidden_size numbers a convolution layer and position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lfm2_mm.config import BackboneConfig

GROWTH = 256  # positions; buffers grow by at least a quarter of themselves too


@dataclass
class Store:
    """Buffers with room to spare. `lengths` are those of the newest state that writes here."""

    keys: list[Tensor]  # attention layers: (batch, kv_heads, capacity, head_dim)
    values: list[Tensor]
    inputs: list[Tensor]  # convolution layers: (batch, kernel - 1 + capacity, hidden), zeros first
    lengths: tuple[int, ...]
    capacity: int
    lead: int  # kernel - 1

    def resized(self, capacity: int, kept: int) -> Store:
        """New buffers of `capacity` positions with the first `kept` copied over."""

        def move(old: Tensor, axis: int, kept: int, size: int) -> Tensor:
            shape = list(old.shape)
            shape[axis] = size
            new = old.new_zeros(shape)
            new.narrow(axis, 0, kept).copy_(old.narrow(axis, 0, kept))
            return new

        return Store(
            [move(k, 2, kept, capacity) for k in self.keys],
            [move(v, 2, kept, capacity) for v in self.values],
            [move(u, 1, kept + self.lead, capacity + self.lead) for u in self.inputs],
            self.lengths,
            capacity,
            self.lead,
        )


@dataclass(frozen=True)
class State:
    """A value: stepping from it never changes what it holds, so it may be kept, shared and cut.

    States of one history share buffers; only the newest writes in place, an older one that is
    continued gets buffers of its own first.
    """

    store: Store = field(repr=False)
    lengths: tuple[int, ...]  # positions seen, one number for each row of the batch

    @classmethod
    def start(
        cls, config: BackboneConfig, batch: int, dtype: torch.dtype, device: torch.device
    ) -> State:
        """A state that has seen nothing."""
        attention = sum(t == "full_attention" for t in config.layer_types)
        convolutions = config.num_layers - attention
        lead = config.kernel - 1
        kv = (batch, config.kv_heads, 0, config.head_dim)
        u = (batch, lead, config.hidden_size)
        lengths = (0,) * batch

        def zeros(shape: tuple[int, ...], count: int) -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)]

        store = Store(zeros(kv, attention), zeros(kv, attention), zeros(u, convolutions),
                      lengths, 0, lead)  # fmt: skip
        return cls(store, lengths)

    @property
    def length(self) -> int:
        """Positions seen by the longest row."""
        return max(self.lengths)

    @property
    def bytes(self) -> int:
        """Memory held by the buffers."""
        buffers = (*self.store.keys, *self.store.values, *self.store.inputs)
        return sum(b.numel() * b.element_size() for b in buffers)

    def copy(self) -> State:
        """The same state with buffers of its own."""
        return State(self._own(self.length), self.lengths)

    def cut(self, length: int) -> State:
        """This state as it was after `length` positions; shorter rows stay as they are."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cut to {length}: the state has seen {self.length} positions")
        return State(self.store, tuple(min(length, seen) for seen in self.lengths))

    def room_for(self, new: int) -> Store:
        """Buffers that take `new` further positions without harm to other states."""
        needed = self.length + new
        store = self.store
        if store.lengths == self.lengths and needed <= store.capacity:
            return store
        return self._own(max(needed, min(needed + needed // 4, needed + 4096), GROWTH))

    def _own(self, capacity: int) -> Store:
        store = self.store.resized(capacity, self.length)
        store.lengths = self.lengths
        return store
