"""Pixels of a picture, cut by its plan into patches. Knows no model and no budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from lfm2_mm.types import Image
from vision.rule import ImageRule, Size
from vision.tiling import TilePlan

LARGE = 2_000_000  # pixels: decoding fewer takes less time than it is worth
# So many times smaller, if that is still so many times larger than shown. A decoder's averages
# blur a picture beside the resize that follows, by 1 / (2 spare^2) of its own variance.
SMALLER = ((4, 2.0), (2, 1.25))


def cut(image: Image, plan: TilePlan) -> list[torch.Tensor]:
    """The patches of every crop, in the order of `plan.crops`: (rows * cols, 768) uint8 each.

    Patches row by row; inside one (y, x, channel). Those of an exact plan are the reference's
    pixels. Else large JPEGs are decoded at 1/2 or 1/4, which on photographs changes pixels by less
    than 1 of 255 (root mean square), on pages of small text by up to 8; and a turned picture is
    turned after it was resized, which rounds some differently. Raises BadPicture.
    """
    sizes = [plan.shown]
    if plan.thumbnail and plan.whole is not None:
        sizes.append(plan.whole)
    views = _exact_views(image, sizes) if plan.exact else _quick_views(image, sizes, _least(plan))
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


def _exact_views(image: Image, sizes: Sequence[Size]) -> list[np.ndarray]:
    """The picture in every size: turned first, since the order of its axes matters to the bit."""
    pixels = image.decode()
    return [_resized(pixels, size) for size in sizes]


def _quick_views(image: Image, sizes: Sequence[Size], least: Size) -> list[np.ndarray]:
    """The picture in every size: turned and brought to sRGB last, when pixels are few."""
    turned, finish = image.source.turned, image.source.finish
    pixels = image.source.stored(*(least[::-1] if turned else least))
    return [finish(_resized(pixels, Size(*size[::-1]) if turned else size)) for size in sizes]


def _least(plan: TilePlan) -> Size:
    """How large the decoded picture must be at least; 0 x 0 for all of its pixels."""
    if plan.height * plan.width < LARGE:
        return Size(0, 0)
    for smaller, spare in SMALLER:
        height, width = plan.height // smaller, plan.width // smaller
        if height >= spare * plan.shown.height and width >= spare * plan.shown.width:
            return Size(height, width)
    return Size(0, 0)


def _resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """(height, width, 3) uint8 in another size; bilinear, antialiased.

    In whole numbers where torch has vector instructions for that, else in floats: as torchvision.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    if not pixels.flags.writeable:  # torch takes none
        pixels = pixels.copy()
    # The batch axis first: else torch takes and returns the channels apart, in 3 times the time.
    given = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    whole = "AVX" in torch.backends.cpu.get_cpu_capability()
    given = given if whole else given.float()
    made = F.interpolate(given, tuple(size), mode="bilinear", antialias=True)
    made = made if whole else made.round_().to(torch.uint8)
    return made[0].permute(1, 2, 0).numpy()


def _patches(view: np.ndarray, patch: int) -> torch.Tensor:
    """(height, width, 3) -> (rows, cols, patch * patch * 3)."""
    height, width, _ = view.shape
    rows, cols = height // patch, width // patch
    cells = view.reshape(rows, patch, cols, patch * 3).transpose(0, 2, 1, 3)
    return torch.from_numpy(cells.reshape(rows, cols, patch * patch * 3))


def _tiles(patches: torch.Tensor, plan: TilePlan) -> list[torch.Tensor]:
    side = plan.tile // plan.rule.patch
    return [
        patches[r * side : (r + 1) * side, c * side : (c + 1) * side].flatten(0, 1)
        for r in range(plan.rows)
        for c in range(plan.cols)
    ]
