"""Tensors by key, the least lately used forgotten beyond a number of bytes. Knows no pictures."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class TensorCache:
    """At most `limit` bytes of tensors. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor under `key`, which is now the latest used; None if it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep `tensor`, unless it alone is beyond the limit."""
        with self._lock:
            self._forget(key)
            if tensor.nbytes > self.limit:
                return
            self._kept[key] = tensor
            self.bytes += tensor.nbytes
            while self.bytes > self.limit:
                self._forget(next(iter(self._kept)))

    def _forget(self, key: Hashable) -> None:
        tensor = self._kept.pop(key, None)
        self.bytes -= 0 if tensor is None else tensor.nbytes
