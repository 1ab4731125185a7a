"""Memory for what is read from end to end every step. Knows bytes, no matrices.

Huge pages where the system gives them on request (Linux): with ordinary ones the processor stops
fetching ahead at every fourth kilobyte, which costs a third of the memory's speed.
"""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress

import numpy as np

CHUNK = 32 << 20
ALIGNMENT = 4096


class Arena:
    """Hands out zeroed bytes from large chunks; a chunk goes when the last piece of it goes."""

    def __init__(self) -> None:
        self._chunk = np.zeros(0, np.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """(size,) uint8, aligned to a page."""
        with self._lock:
            if self._used + size > len(self._chunk):
                if size >= CHUNK // 2:
                    return pages(size)
                self._chunk, self._used = pages(CHUNK), 0
            piece = self._chunk[self._used : self._used + size]
            self._used += -(-size // ALIGNMENT) * ALIGNMENT
            return piece


def pages(size: int) -> np.ndarray:
    """(size,) uint8 in pages of its own, which cost nothing until they are written."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(size, np.uint8)
    # Private: pages shared between processes are small ones whatever is asked for.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system built without them: ordinary pages do
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size]


weights = Arena()
