"""Shapes of the published text checkpoints, and random weights to measure speed without them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig, Experts
from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput
from lfm2_mm.loading import build, layout, part_rows

SIXTEEN = (2, 5, 8, 10, 12, 14)  # attention layers of the 16-layer models


def _shape(
    hidden: int,
    feed_forward: int,
    *,
    layers: int = 16,
    attention: tuple[int, ...] = SIXTEEN,
    experts: Experts | None = None,
) -> BackboneConfig:
    kinds = tuple("full_attention" if i in attention else "conv" for i in range(layers))
    return BackboneConfig(
        65_536, hidden, kinds, hidden // 64, 8, feed_forward, experts=experts
    )  # fmt: skip


SHAPES = {
    "LFM2-350M": _shape(1024, 4608),
    "LFM2-700M": _shape(1536, 6912),
    "LFM2-1.2B": _shape(2048, 8192),
    "LFM2-2.6B": _shape(2048, 10_752, layers=30, attention=(2, 5, 9, 13, 17, 21, 24, 27)),
    "LFM2-8B-A1B": _shape(
        2048, 7168, layers=24, attention=(2, 6, 10, 14, 18, 21), experts=Experts(32, 4, 1792, 2)
    ),
}


def find_shape(name: str) -> BackboneConfig:
    """The shape of a published checkpoint, in any case of letters. Raises BadInput."""
    for known, config in SHAPES.items():
        if known.lower() == name.strip().lower():
            return config
    raise BadInput(f"no shape {name!r}; known are {', '.join(SHAPES)}")


def random_backbone(config: BackboneConfig, choice: Choice, seed: int = 0) -> Backbone:
    """A backbone of this shape with random weights, made as a checkpoint is loaded."""
    return build(config, random_tensors(config, seed), choice)


def random_tensors(config: BackboneConfig, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(published key, bf16 tensor) pairs: norms are ones, matrices normal with deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Backbone(config).named_parameters()}
    for name, parts in layout(config).items():
        rows = part_rows(name, config) if len(parts) > 1 else [shapes[name][0]]
        for part, count in zip(parts, rows, strict=True):
            shape = (count, *shapes[name][1:])
            if name.endswith(".conv.weight"):  # published as (hidden, 1, kernel)
                shape = (shapes[name][1], 1, shapes[name][0])
            if len(shape) == 1:
                fill = torch.zeros if name.endswith("bias") else torch.ones
                yield part, fill(shape, dtype=torch.bfloat16)
            else:
                random = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
                yield part, random.mul_(0.02)
