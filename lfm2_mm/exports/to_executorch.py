"""The target executorch: one program for phones, through XNNPACK, and that in its own runtime."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfm2_mm.exports.checks import LONG, Row
from lfm2_mm.exports.graph_files import TYPES, GraphRunner, limits, rounded, traced
from lfm2_mm.exports.source import Source

__all__ = ["DEFAULT", "NEEDS", "SUFFIX", "TYPES", "limits", "open_runner", "rounded", "write"]

SUFFIX, DEFAULT = ".pte", "f32"
NEEDS = ("executorch", "torchao")
PORTION = 128  # the most ids of a language model's call: its memory is planned beforehand


def write(source: Source, path: Path, kind: str, context: int) -> list[str]:
    """`context`: how many positions the caches of a language model have; an encoder has none."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    graph = traced(source, context)
    encoder = source.kind == "colbert"
    most = max(source.longest, LONG) if encoder else min(PORTION, context - 1)
    new = torch.export.Dim("new", min=1, max=most)
    shapes: Any = tuple({1: new} if 1 in axes else None for axes in graph.free)
    example = graph.example
    if encoder:
        example = tuple(one[:1] for one in example)  # one text at a time
    else:
        shapes = (shapes[0], shapes[1], shapes[2:])
    with _tools(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph.module.eval(), example, dynamic_shapes=shapes)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        with path.open("wb") as file:
            lowered.to_executorch().write_to_file(file)
    caches = "one text a call" if encoder else f"caches of {context} positions"
    return [f"{caches}; at most {most} ids a call"]


def open_runner(source: Source, path: Path) -> InExecutorch:
    return InExecutorch(source, path)


class InExecutorch(GraphRunner):
    def __init__(self, source: Source, path: Path) -> None:
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        self.method: Any = program.load_method("forward")
        super().__init__(source, capacity=capacity_of(source, self.method))
        self.runtime = f"ExecuTorch {version('executorch')}, XNNPACK"

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        given = [torch.from_numpy(np.ascontiguousarray(one)) for one in inputs]
        return [one.numpy().copy() for one in self.method.execute(given)]

    def vectors(self, rows: Sequence[Row]) -> list[np.ndarray]:
        return [super(InExecutorch, self).vectors([row])[0] for row in rows]  # one text a call


def capacity_of(source: Source, method: Any) -> int:
    """Positions that a program's caches have, as the file itself says; 0: it has none."""
    if source.kind == "colbert":
        return 0
    first = source.config.layer_types.index("full_attention")
    return int(method.metadata.input_tensor_meta(2 + first).sizes()[2])


@contextlib.contextmanager
def _tools() -> Iterator[None]:
    """ExecuTorch calls `flatc`, which its wheel brings and does not put on the path."""
    import executorch

    tools = [str(Path(folder) / "data" / "bin") for folder in executorch.__path__]
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([*tools, before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
