"""The target openvino: made of the onnx graph, and run in OpenVINO on the processor."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from lfm2_mm.exports import to_onnx
from lfm2_mm.exports.graph_files import TYPES, GraphRunner, limits, rounded
from lfm2_mm.exports.source import Source
from lfm2_mm.extras import need

__all__ = ["DEFAULT", "NEEDS", "SUFFIX", "TYPES", "limits", "open_runner", "rounded", "write"]

SUFFIX, DEFAULT = ".xml", "f32"  # the weights lie beside, in .bin
NEEDS = ("openvino", "onnx", "onnxscript")


def library() -> Any:
    """OpenVINO without its telemetry, which would tell its maker of every import and conversion."""
    sys.modules.setdefault(
        "openvino_telemetry", cast(Any, None)
    )  # the library takes that for absent
    return need("openvino", "openvino")


def write(source: Source, path: Path, kind: str, context: int) -> list[str]:
    openvino = library()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        graph = Path(folder) / "graph.onnx"
        to_onnx.write(source, graph, kind, context)
        model = openvino.Core().read_model(graph)
        openvino.save_model(model, path, compress_to_fp16=False)
    return []


def open_runner(source: Source, path: Path) -> InOpenvino:
    return InOpenvino(source, path)


class InOpenvino(GraphRunner):
    def __init__(self, source: Source, path: Path) -> None:
        super().__init__(source)
        openvino = library()
        # Its own choice of precision divides by zero in the plugin on some processors.
        how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.model = openvino.Core().compile_model(str(path), "CPU", how)
        self.names = [one.get_any_name() for one in self.model.inputs]
        self.runtime = f"OpenVINO {openvino.__version__.partition('-')[0]}"

    def call(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        found = self.model(dict(zip(self.names, inputs, strict=True)))
        return [found[place].copy() for place in range(len(self.model.outputs))]
