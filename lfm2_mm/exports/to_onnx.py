"""The target onnx: one graph for whole prompts, portions and tokens, and that in onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfm2_mm.exports.graph_files import TYPES, GraphRunner, limits, rounded, traced
from lfm2_mm.exports.source import Source
from lfm2_mm.extras import need

__all__ = ["DEFAULT", "NEEDS", "SUFFIX", "TYPES", "limits", "open_runner", "rounded", "write"]

SUFFIX, DEFAULT = ".onnx", "f32"
NEEDS = ("onnx", "onnxscript", "onnxruntime")
ONE_FILE = 1_900_000_000  # bytes; the format's own limit is 2 GiB, beyond it weights lie beside


def write(source: Source, path: Path, kind: str, context: int) -> list[str]:
    """Write the graph; beyond 1.9 GB of weights they lie beside it in a file of their own."""
    graph = traced(source)
    auto = torch.export.Dim.AUTO
    shapes: Any = tuple(dict.fromkeys(axes, auto) or None for axes in graph.free)
    if not hasattr(graph.module, "head"):  # a state is one argument of many
        shapes = (shapes[0], shapes[1:])
    size = sum(p.numel() * 4 for p in graph.module.parameters())
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(), graph.example, dynamo=True, dynamic_shapes=shapes,
            input_names=graph.inputs, output_names=graph.outputs, verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(path, external_data=size > ONE_FILE)
    return []


def open_runner(source: Source, path: Path) -> InOnnxruntime:
    return InOnnxruntime(source, path)


class InOnnxruntime(GraphRunner):
    def __init__(self, source: Source, path: Path) -> None:
        super().__init__(source)
        onnxruntime = need("onnx", "onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = [one.name for one in self.session.get_inputs()]
        self.runtime = f"onnxruntime {onnxruntime.__version__}"

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(
            None, dict(zip(self.names, inputs, strict=True))
        )
        return outputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its own steps and its own deprecations."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
