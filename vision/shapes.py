"""Shapes of the published vision checkpoints, and random weights to measure speed without them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput
from lfm2_mm.shapes import SHAPES as TEXT
from vision.config import TowerConfig, VisionConfig
from vision.loading import awaited_shapes, build_vision
from vision.tower import VisionModel

BASE = TowerConfig(width=768, feed_forward=3072, heads=12, layers=12)
LARGE = TowerConfig(width=1152, feed_forward=4304, heads=16, layers=27)
# As trained, without its last layer: published so.
CUT = TowerConfig(width=1152, feed_forward=4304, heads=16, layers=26)

SHAPES = {
    "LFM2-VL-450M": VisionConfig(BASE, TEXT["LFM2-350M"], 2560, projector_norm=True),
    "LFM2-VL-1.6B": VisionConfig(CUT, TEXT["LFM2-1.2B"], 2560, projector_norm=True),
    "LFM2-VL-3B": VisionConfig(LARGE, TEXT["LFM2-2.6B"], 2560, projector_norm=True),
    "LFM2.5-VL-450M": VisionConfig(BASE, TEXT["LFM2-350M"], 2048),
    "LFM2.5-VL-1.6B": VisionConfig(LARGE, TEXT["LFM2-1.2B"], 2048),
}


def find_shape(name: str) -> VisionConfig:
    """The shape of a published checkpoint, in any case of letters. Raises BadInput."""
    for known, config in SHAPES.items():
        if known.lower() == name.strip().lower():
            return config
    raise BadInput(f"no shape {name!r}; known are {', '.join(SHAPES)}")


def random_vision(config: VisionConfig, choice: Choice, seed: int = 0) -> VisionModel:
    """Tower and projector of this shape with random weights, made as a checkpoint is loaded."""
    return build_vision(config, random_tensors(config, seed), choice)


def random_tensors(config: VisionConfig, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(key as vision.loading.layout has it, bf16 tensor): norms are ones, matrices of gain 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = awaited_shapes(VisionModel(config))
    for key, shape in shapes.items():
        if len(shape) == 1:
            fill = torch.zeros if key.endswith("bias") else torch.ones
            yield key, fill(shape, dtype=torch.bfloat16)
        else:
            random = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
            yield key, random.mul_(shape[1] ** -0.5)
