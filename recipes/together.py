"""Several processes train one model: each has a part of the data, all take the same steps.

Knows processes and gradients; knows nothing of data. One process per core is faster than one
process with many threads, which small matrices keep waiting.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed


class Together:
    """One of `count` processes; the one of rank 0 reports, saves and decides."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def part(self) -> tuple[int, int]:
        """Which (from 0) of how many."""
        return self.rank, self.count

    @torch.no_grad()
    def same(self, tensors: Iterable[Tensor]) -> None:
        """Everywhere what they are in rank 0."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def agreed(self, decision: bool) -> bool:
        """What rank 0 decides."""
        told = torch.tensor([decision])
        self.same([told])
        return bool(told)

    @torch.no_grad()
    def average(self, parameters: Iterable[Tensor]) -> None:
        """Each gradient's mean over the processes. All have gradients of the same parameters."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(whole)
        parts = whole.div_(self.count).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


ALONE = Together()


@contextmanager
def joined(count: int, helper: Callable[[Together, Any], None], work: Any) -> Iterator[Together]:
    """Rank 0 of `count` processes; each of the others calls `helper` with `work`. They end with
    the block: an interrupt is for rank 0, which saves."""
    if count < 2:
        yield ALONE
        return
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "meeting"
        others = [
            fresh.Process(target=_help, args=(place, rank, count, helper, work), daemon=True)
            for rank in range(1, count)
        ]
        for other in others:
            other.start()
        try:
            yield meet(place, 0, count)
        finally:
            for other in others:
                other.terminate()
            distributed.destroy_process_group()


def meet(place: Path, rank: int, count: int) -> Together:
    distributed.init_process_group("gloo", init_method=place.as_uri(), rank=rank, world_size=count)
    return Together(rank, count)


def _help(
    place: Path, rank: int, count: int, helper: Callable[[Together, Any], None], work: Any
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    helper(meet(place, rank, count), work)
