"""Packed layers over many positions with one pass over memory between two products.

What it computes is what Backbone's layers compute; what differs is rounding. Knows the layers'
order, no arithmetic. One row and one position alone are lfm2_mm.fused's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from torch import Tensor

from lfm2_mm.linear import PackedLinear
from lfm2_mm.rows import Codes, Product, Rows, multiply, rows

if TYPE_CHECKING:
    from lfm2_mm.backbone import KV, Backbone, Block, FeedForward, RMSNorm, Rotary, ShortConv, View


class ManyRows:
    """The layers of a packed backbone without experts."""

    def __init__(self, backbone: Backbone, passes: Rows) -> None:
        self._blocks = cast("list[Block]", list(backbone.layers))
        self._last, self._rows = backbone.norm, passes

    def run(
        self,
        x: Tensor,
        caches: Iterable[KV | Tensor | None],
        view: View,
        rotary: Rotary,
        sees: Tensor | None,
        keep: bool,
    ) -> Tensor:
        """x (batch, new, hidden) -> hidden states, as Backbone._layers."""
        shape, added = x.shape, None
        x = x.reshape(-1, shape[-1]).clone()  # what a product adds is added in place
        for block, cache in zip(self._blocks, caches, strict=True):
            codes = self._norm(x, block.operator_norm, added)
            if block.self_attn is not None:
                first, last = block.self_attn.qkv_proj, block.self_attn.out_proj
                qkv = self._floats(codes, first, shape)
                mixed = block.self_attn.mix(qkv, view, rotary, sees, cast("KV | None", cache))
            else:
                conv = cast("ShortConv", block.conv)
                first, last = conv.in_proj, conv.out_proj
                gates = self._floats(codes, first, shape)
                mixed = conv.mix(gates, view, cast("Tensor | None", cache), keep)
            added = self._multiply(self._rows.round(mixed.reshape(len(x), -1)), last)
            codes = self._norm(x, block.ffn_norm, added)
            network = cast("FeedForward", block.feed_forward)
            gates_and_ups = self._multiply(codes, network.w13)
            added = self._multiply(self._rows.swiglu(gates_and_ups), network.w2)
        last_norm = self._last
        out = self._rows.norm_out(
            x, last_norm.weight, None, last_norm.eps, add=added, centred=False
        )
        return out.view(shape)

    def _norm(self, x: Tensor, norm: RMSNorm, add: Product | None) -> Codes:
        return self._rows.norm(x, norm.weight, None, norm.eps, add=add, centred=False)

    @staticmethod
    def _multiply(codes: Codes, linear: object) -> Product:
        return multiply(codes, cast(PackedLinear, linear))

    def _floats(self, codes: Codes, linear: object, shape: tuple[int, ...]) -> Tensor:
        return self._multiply(codes, linear).floats().view(*shape[:-1], -1)


def many_rows_for(backbone: Backbone) -> ManyRows | None:
    """None where the processor has no byte products, sizes are no whole lanes, or for mixtures."""
    config = backbone.config
    widths = (config.hidden_size, config.feed_forward, config.heads * config.head_dim)
    if config.experts is not None or any(width % 16 for width in widths):
        return None
    passes = rows()
    return None if passes is None else ManyRows(backbone, passes)
