"""Pixels of a picture, cut by its plan into patches. Knows no model and no budget."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from lfm2_mm.types import Image
from vision.rule import ImageRule, Size
from vision.tiling import TilePlan


def cut(image: Image, plan: TilePlan) -> list[torch.Tensor]:
    """The patches of every crop, in the order of `plan.crops`: (rows * cols, 768) uint8 each.

    Patches row by row; inside one (y, x, channel). An exact plan gives the reference's pixels: all
    of them decoded, each crop resized from them. Else a JPEG is decoded at the least resolution
    that the plan can show. Raises BadPicture.
    """
    least = Size(0, 0) if plan.exact else _least(plan)
    pixels = _planar(image.decode(*least))
    views = [_resized(pixels, plan.shown)]
    if plan.thumbnail and plan.whole is not None:
        views.append(_resized(pixels, plan.whole))
    patches = [_patches(view, plan.rule.patch) for view in views]
    if not plan.tiled:
        return [patches[0].flatten(0, 1)]
    return [*_tiles(patches[0], plan), *(p.flatten(0, 1) for p in patches[1:])]


def normalised(patches: torch.Tensor, rule: ImageRule) -> torch.Tensor:
    """uint8 patches (..., 768) -> float32 as the model takes them, equal to the reference's."""
    per_patch = patches.shape[-1] // 3
    mean = torch.tensor(rule.mean) * (1.0 / rule.rescale)
    std = torch.tensor(rule.std) * (1.0 / rule.rescale)
    return patches.float().sub_(mean.repeat(per_patch)).div_(std.repeat(per_patch))


def _least(plan: TilePlan) -> Size:
    """Pixels that a decoded picture must have at least for this plan, along each side."""
    return Size(min(plan.shown.height, plan.height), min(plan.shown.width, plan.width))


def _planar(pixels: np.ndarray) -> torch.Tensor:
    """(height, width, 3) -> (1, 3, height, width), the same memory where it may be written to."""
    writable = pixels if pixels.flags.writeable else pixels.copy()
    return torch.from_numpy(writable).permute(2, 0, 1)[None]


def _resized(pixels: torch.Tensor, size: Size) -> torch.Tensor:
    """(1, 3, height, width) uint8 -> (height', width', 3) uint8; bilinear, antialiased."""
    if tuple(pixels.shape[2:]) != tuple(size):
        pixels = F.interpolate(pixels, tuple(size), mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0)


def _patches(view: torch.Tensor, patch: int) -> torch.Tensor:
    """(height, width, 3) -> (rows, cols, patch * patch * 3)."""
    height, width, _ = view.shape
    rows, cols = height // patch, width // patch
    cells = view.reshape(rows, patch, cols, patch * 3)
    return cells.transpose(1, 2).reshape(rows, cols, patch * patch * 3)


def _tiles(patches: torch.Tensor, plan: TilePlan) -> list[torch.Tensor]:
    side = plan.tile // plan.rule.patch
    return [
        patches[r * side : (r + 1) * side, c * side : (c + 1) * side].flatten(0, 1)
        for r in range(plan.rows)
        for c in range(plan.cols)
    ]
