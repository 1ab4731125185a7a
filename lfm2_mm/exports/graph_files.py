"""The traced graphs of a checkpoint, with names and example inputs. Knows torch; no file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lfm2_mm.errors import BadInput
from lfm2_mm.exports.checks import Limits, Row, one_by_one
from lfm2_mm.exports.graph import Encode, FixedStep, Step, slots
from lfm2_mm.exports.source import Source

TYPES = ("f32",)
LIMITS = Limits(1e-3, 1e-4, 1e-5, exact=True)  # float32 summed in another order


def limits(kind: str) -> Limits:
    return LIMITS


def rounded(source: Source, kind: str) -> Source:
    """Graphs hold the weights as they are."""
    return source


@dataclass(frozen=True)
class Traced:
    """A module, inputs to trace it with, which axes of them vary, and everything's name."""

    module: nn.Module
    example: tuple[Tensor, ...]
    free: tuple[tuple[int, ...], ...]  # axes of each input
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def traced(source: Source, capacity: int = 0) -> Traced:
    """The graph of `source`; with a capacity, a language model's caches have that size."""
    if source.backbone.dtype != torch.float32:
        raise BadInput("graphs are written in f32: leave --dtype away")
    if source.kind == "colbert":
        return _encoder(source)
    state = slots(source.backbone, capacity)
    ids = torch.ones(1, 5, dtype=torch.int64)
    names = tuple(slot.name for slot in state)
    after = ("logits", *(f"next.{name}" for name in names))
    if capacity:
        module: nn.Module = FixedStep(source.backbone, capacity)
        example = (ids, torch.tensor([3]), *(slot.start() for slot in state))
        free = ((1,), (), *(() for _ in state))
        return Traced(module, example, free, ("ids", "position", *names), after)
    filled = [
        torch.zeros(*slot.shape[:2], 3, slot.shape[3]) if slot.grows else slot.start()
        for slot in state
    ]
    axes = [(slot.grows,) if slot.grows is not None else () for slot in state]
    return Traced(Step(source.backbone), (ids, *filled), ((1,), *axes), ("ids", *names), after)


def _encoder(source: Source) -> Traced:
    assert source.head is not None
    masks = ("attended", "convolved")[: 1 + source.backbone.bidirectional]
    # Tensors of their own: one that is given twice would be traced as one input.
    example = (
        torch.ones(2, 5, dtype=torch.int64),
        *(torch.ones(2, 5, dtype=torch.bool) for _ in masks),
    )
    return Traced(
        Encode(source.backbone, source.head), example, ((0, 1),) * len(example),
        ("ids", *masks), ("vectors",),
    )  # fmt: skip


def padded(rows: Sequence[Row], bidirectional: bool) -> list[np.ndarray]:
    """ids and masks of an encoder's graph for rows of unequal length."""
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = row.ids
    columns = np.arange(width)
    attended = columns < np.array([[row.attended] for row in rows])
    convolved = columns < np.array([[row.convolved] for row in rows])
    return [ids, attended, convolved][: 2 + bidirectional]


class GraphRunner:
    """What every runtime of a graph has in common: a state that is handed from call to call."""

    reads = "ids"
    queries = True
    runtime = ""
    remarks: tuple[str, ...] = ()

    def __init__(self, source: Source, capacity: int = 0) -> None:
        self.bidirectional = source.backbone.bidirectional
        self.capacity = capacity
        self.begin = [slot.start().numpy() for slot in slots(source.backbone, capacity)]
        self.start()

    def start(self) -> None:
        self.state: list[Any] = self.begin
        self.read_so_far = 0

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """All outputs in order."""
        raise NotImplementedError

    def read(self, ids: Sequence[int]) -> np.ndarray:
        given = [np.array([ids], np.int64)]
        if self.capacity:
            given.append(np.array([self.read_so_far], np.int64))
        logits, *self.state = self.call([*given, *self.state])
        self.read_so_far += len(ids)
        return logits[0]

    def vectors(self, rows: Sequence[Row]) -> list[np.ndarray]:
        (found,) = self.call(padded(rows, self.bidirectional))
        return [found[place, : len(row.ids)] for place, row in enumerate(rows)]

    def same_ids(self, ids: Sequence[int], chosen: bool) -> bool:
        """A graph takes ids; the ones it chooses, greedily, are what can be equal."""
        return chosen

    def tokens_per_s(self, ids: Sequence[int]) -> float:
        self.start()
        return one_by_one(self.read, ids)

    def close(self) -> None:
        """Nothing is held that the garbage collector does not find."""
