"""The published tiling rule: which crops LFM2-VL was trained to see of a picture of some size.

Integers and the checkpoint's settings only. Knows no budget, no pixels, no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from lfm2_mm.errors import BadInput


class Size(NamedTuple):
    height: int
    width: int


class Grid(NamedTuple):
    rows: int
    cols: int


@dataclass(frozen=True)
class ImageRule:
    """A checkpoint's image settings; the defaults are the published ones.

    Names and meaning are those of preprocessor_config.json. A token covers `cell` x `cell` pixels.
    Raises BadInput where settings contradict each other.
    """

    patch: int = 16  # pixels
    downsample: int = 2  # patches a token, along each side
    tile: int = 512  # pixels
    min_tiles: int = 2
    max_tiles: int = 10
    min_image_tokens: int = 64  # of a crop that shows the whole picture
    max_image_tokens: int = 256
    max_pixels_tolerance: float = 2.0  # so many times max_image_tokens are still not tiled
    thumbnail: bool = True  # the whole picture after its tiles
    splitting: bool = True
    special_tokens: bool = True  # <|image_start|> and the like around image tokens
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))
        if self.tile % self.cell:
            raise BadInput(f"tiles of {self.tile} pixels do not divide into cells of {self.cell}")
        for least, most in (("min_tiles", "max_tiles"), ("min_image_tokens", "max_image_tokens")):
            if getattr(self, least) > getattr(self, most):
                raise BadInput(
                    f"{least} {getattr(self, least)} is above {most} {getattr(self, most)}"
                )

    @property
    def cell(self) -> int:
        """Pixels along a side of what one token shows."""
        return self.patch * self.downsample

    @property
    def tile_tokens(self) -> int:
        return (self.tile // self.cell) ** 2

    def capped(self, tiles: int) -> ImageRule:
        """These settings with at most so many tiles; 1: pictures are never cut."""
        return replace(self, max_tiles=tiles, min_tiles=min(self.min_tiles, tiles))

    def whole(self, height: int, width: int) -> Size:
        """The size at which the whole picture is shown in one crop, alone or as a thumbnail.

        As published, very thin pictures may exceed max_image_tokens: no side is under one cell.
        """
        cell, area = self.cell, self.cell**2
        rows, cols = max(1, round(height / cell)), max(1, round(width / cell))
        if rows * cols > self.max_image_tokens:
            shrink = math.sqrt((height * width) / (self.max_image_tokens * area))
            rows = max(1, math.floor(height / shrink / cell))
            cols = max(1, math.floor(width / shrink / cell))
        elif rows * cols < self.min_image_tokens:
            grow = math.sqrt((self.min_image_tokens * area) / (height * width))
            rows, cols = math.ceil(height * grow / cell), math.ceil(width * grow / cell)
        return Size(rows * cell, cols * cell)

    def splits(self, height: int, width: int) -> bool:
        """Whether the picture is cut into tiles: its pixels exceed a crop's by the tolerance."""
        if not self.splitting or self.max_tiles == 1:
            return False
        high = max(self.patch, round(height / self.cell) * self.cell)
        wide = max(self.patch, round(width / self.cell) * self.cell)
        return high * wide > self.max_image_tokens * self.cell**2 * self.max_pixels_tolerance

    def grid(self, height: int, width: int) -> Grid:
        """The grid of tiles whose shape is nearest to the picture's.

        Of equally near ones the later, if the picture has half its pixels; they come by number of
        tiles, and by the order of a Python set of (cols, rows) within a number, as published.
        """
        aspect, pixels = width / height, height * width
        best, distance = Grid(1, 1), math.inf
        for cols, rows in _candidates(self.min_tiles, self.max_tiles):
            off = abs(aspect - cols / rows)
            enough = pixels > 0.5 * self.tile**2 * cols * rows
            if off < distance or (off == distance and enough):
                best, distance = Grid(rows, cols), off
        return best


def _candidates(least: int, most: int) -> list[tuple[int, int]]:
    found = {
        (cols, rows)
        for n in range(least, most + 1)
        for cols in range(1, n + 1)
        for rows in range(1, n + 1)
        if least <= cols * rows <= most
    }
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def _check(name: str, value: object) -> None:
    """A setting of the right kind and sign, by the kind of its default."""
    default = ImageRule.__dataclass_fields__[name].default
    if isinstance(default, bool):
        right, needed = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        right, needed = type(value) is int and value >= 1, "a whole number from 1 up"
    elif isinstance(default, float):
        right, needed = _positive(value), "a number above 0"
    else:
        right = isinstance(value, tuple) and len(value) == 3 and all(map(_positive, value))
        needed = "three numbers above 0"
    if not right:
        raise BadInput(f"image setting {name} is {value!r}; it must be {needed}")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
