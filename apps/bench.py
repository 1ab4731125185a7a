"""How fast chat is here: one record a row. Knows what is measured, not how it is shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Row = dict[str, Any]
REPEATS = 7


def bench_chat(
    shape: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    prefills: tuple[int, ...] = (128, 1024, 4096),
    contexts: tuple[int, ...] = (128, 1024, 4096),
    decoded: int = 32,
) -> Iterator[Row]:
    """Reading prompts and writing tokens at the shape of a published checkpoint, random weights.

    One record a row: what ("prefill" or "decode"), size (tokens read, or tokens in the context),
    ms a token, and tokens per_s.
    """
    from lfm2_mm.device import choose
    from lfm2_mm.shapes import find_shape, random_backbone

    config = find_shape(shape)
    choice = choose(device, dtype)
    backbone = random_backbone(config, choice)
    run = BackboneRun(backbone)
    common = {"model": f"{shape} {choice.weights}"}
    for size in prefills:
        run.prefill(min(size, 64))
        seconds = min(timed(partial(run.prefill, size)) for _ in range(2))
        yield {"what": "prefill", **common, "size": size,
               "ms": 1e3 * seconds / size, "per_s": size / seconds}  # fmt: skip
    for size in contexts:
        run.prefill(size)
        run.decode(4)
        seconds = timed(partial(run.decode, decoded)) / decoded
        yield {"what": "decode", **common, "size": size,
               "ms": 1e3 * seconds, "per_s": 1 / seconds}  # fmt: skip


class BackboneRun:
    """Drives a backbone as the engine does, with random ids and greedy choice."""

    def __init__(self, backbone: Any) -> None:
        import torch

        self.backbone = backbone
        self.ids = torch.randint(0, backbone.config.vocab_size, (1, 1 << 15))
        self.state = backbone.start()

    def prefill(self, size: int) -> None:
        """Read `size` tokens into a fresh state, in the engine's portions."""
        from lfm2_mm.engines.native import PREFILL

        self.state = self.backbone.start()
        for begin in range(0, size, PREFILL):
            self.feed(self.ids[:, begin : min(begin + PREFILL, size)])

    def decode(self, count: int) -> None:
        """Write `count` tokens, each the likeliest after the one before."""
        token = self.ids[:, :1]
        for _ in range(count):
            token = self.feed(token).argmax(-1, keepdim=True)

    def feed(self, ids: Any) -> Any:
        hidden, self.state = self.backbone.step(self.backbone.embed(ids), self.state)
        return self.backbone.logits(hidden[:, -1])


def read_speed() -> float:
    """Bytes a second that torch's threads read from memory: the limit of what reads its weights."""
    import torch

    buffer = torch.ones(64 << 20)
    return buffer.nbytes / min(timed(buffer.amax) for _ in range(5))


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of a call, after one that warms up."""
    call()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)
