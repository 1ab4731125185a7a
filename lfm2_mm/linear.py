"""One linear layer in the arithmetic the machine does fast. Knows matrices, no models.

int8 means: weights rounded once per output channel, activations rounded anew per token, products
summed exactly in int32. A token's result depends on that token alone: not on its neighbours in the
batch, and an outlier in one token does no harm to the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.device import has_exact_int8


class Linear(nn.Module):
    """y = x Wᵀ (+ b) with `weight` (outputs, inputs) in the parameter's own dtype."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Linear(nn.Module):
    """The same with packed int8 weights; input and output are float32. For inference only."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` (outputs, inputs), any float dtype; NaN or infinite rows are refused."""
        super().__init__()
        self.outputs, self.inputs = weight.shape
        quantised, self.scales = quantise_rows(weight)
        self.zeros = torch.zeros(self.outputs, dtype=torch.int64)
        self.packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.inputs)
        step = rows.abs().amax(1, keepdim=True).clamp_min_(1e-30).div_(127.0)
        # The product wants unsigned activations: 128 is zero, and truncation of +0.5 rounds.
        unsigned = torch.div(rows, step).add_(128.5).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, self.packed, self.scales, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        ).mul_(step)  # fmt: skip
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.outputs)


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: (int8 (rows, columns), float32 steps (rows,)).

    Without VNNI the processor adds pairs of products in 16 bits, so weights then keep to ±63:
    2 · 255 · 63 < 2¹⁵.
    """
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise ValueError("weights hold NaN or infinity")
    levels = 127 if has_exact_int8() else 63
    steps = weight.abs().amax(1).clamp_min_(1e-30).div_(levels)
    return torch.round(weight / steps[:, None]).to(torch.int8), steps
