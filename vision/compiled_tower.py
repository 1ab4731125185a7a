"""The tower's blocks in int8 with one pass over memory between two products.

What it computes is what vision.tower's blocks compute; what differs is rounding.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from lfm2_mm.linear import Int8Linear
from lfm2_mm.rows import Codes, Product, Rows, multiply, rows
from vision.attention import attend
from vision.tower import Block, VisionTower


class CompiledTower:
    """The blocks of an int8 tower on a processor with byte products."""

    def __init__(self, tower: VisionTower, passes: Rows) -> None:
        self._tower, self._rows = tower, passes

    def run(self, x: Tensor) -> Tensor:
        """x (crops, patches, width) after the embedding, overwritten -> after the last norm."""
        crops, shape = len(x), x.shape
        x = x.reshape(-1, shape[-1])
        added: Product | None = None
        for block in cast("list[Block]", list(self._tower.layers)):
            codes = self._norm(x, block.norm1, added)
            qkv = multiply(codes, cast(Int8Linear, block.attention.qkv_proj))
            mixed = self._rows.round(attend(qkv, crops, block.attention.heads))
            added = multiply(mixed, cast(Int8Linear, block.attention.out_proj))
            codes = self._norm(x, block.norm2, added)
            wide = multiply(codes, cast(Int8Linear, block.feed_forward.fc1))
            added = multiply(self._rows.gelu(wide), cast(Int8Linear, block.feed_forward.fc2))
        last = self._tower.post_layernorm
        out = self._rows.norm_out(x, last.weight, last.bias, last.eps, add=added, centred=True)
        return out.view(shape)

    def _norm(self, x: Tensor, norm: nn.LayerNorm, add: Product | None) -> Codes:
        return self._rows.norm(x, norm.weight, norm.bias, norm.eps, add=add, centred=True)


def compiled_tower(tower: VisionTower) -> CompiledTower | None:
    """None where weights are not int8, sizes are no whole lanes, or the processor cannot."""
    config = tower.config
    passes = rows()
    whole = config.width % 16 == 0 and config.feed_forward % 16 == 0
    if passes is None or not whole or not isinstance(_first(tower), Int8Linear):
        return None
    return CompiledTower(tower, passes)


def _first(tower: VisionTower) -> object:
    return cast(Block, tower.layers[0]).attention.qkv_proj
