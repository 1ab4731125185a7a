"""A part encoder without a model: every row of pixels is one token. Knows nothing of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lfm2_mm.types import Image, Slot


class Shades:
    """Takes pictures; row i becomes an embedding drawn from its first value. Counts its work."""

    accepts = Image
    kind = "image"
    marker = "<image>"

    def __init__(self, marker_id: int, hidden: int) -> None:
        self.marker_id, self.hidden = marker_id, hidden
        self.computed = 0  # rows

    def plan(self, parts: Sequence[Any]) -> list[Slot]:
        return [self._slot(part) for part in parts]

    def _slot(self, part: Image) -> Slot:
        ids = (self.marker_id,) * part.height
        return Slot((5, *ids, 4), self.marker_id, part.key, part.height)

    def encode(self, part: Image, slot: Slot) -> Iterator[torch.Tensor]:
        for row in part.decode():
            self.computed += 1
            generator = torch.Generator().manual_seed(int(row[0, 0]))
            yield torch.randn(1, self.hidden, generator=generator)


def picture(*rows: int) -> Image:
    """One pixel wide; row i has the value rows[i]."""
    return Image.open(np.array(rows, np.uint8)[:, None, None].repeat(3, axis=2))
