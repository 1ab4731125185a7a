"""One linear layer in the arithmetic the machine does fast. Knows matrices, no models.

int8 means: weights rounded once per output channel, activations rounded anew per token, products
summed exactly in int32. A token's result depends on that token alone: not on its neighbours in the
batch, and an outlier in one token does no harm to the others. int4 rounds weights to 16 levels,
with a step for each 32 of them (lfm2_mm.int4), and activations as int8 does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.compiled import register_width
from lfm2_mm.device import has_exact_int8
from lfm2_mm.int4 import Packed4, multiply4, pack4, round_groups
from lfm2_mm.packed import Packed, pack

if TYPE_CHECKING:
    from lfm2_mm.program import RowProduct

ZERO = 128  # the product wants unsigned activations
SMALLEST = 1e-30  # a row of zeros has a step all the same


class Linear(nn.Module):
    """y = x Wᵀ (+ b) with `weight` (outputs, inputs) in the parameter's own dtype."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """The same with packed weights; input and output are float32. For inference only."""

    operation: str  # of lfm2_mm.step_ir: one row through the weights
    packed: Packed | Packed4
    scales: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` (outputs, inputs), any float dtype; NaN or infinite rows are refused."""
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), False)
        self._alone: RowProduct | None = None

    @property
    def compiled(self) -> bool:
        """Whether our own product of one row can read these weights, here."""
        return register_width() is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are packed."""
        memory = self.packed.memory
        return self.outputs * self.inputs if memory is None else memory.nbytes

    def product(self, codes: Tensor) -> Tensor:
        """codes (n, inputs) uint8 around ZERO -> (n, outputs) before rows' steps and bias."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.inputs)
        y = self.one(rows) if len(rows) == 1 and self.compiled else self.several(rows)
        return y.view(*x.shape[:-1], self.outputs)

    def one(self, row: Tensor) -> Tensor:
        """(1, inputs) -> (1, outputs), at the speed of memory."""
        if self._alone is None:
            from lfm2_mm.program import RowProduct

            self._alone = RowProduct(self)
        return self._alone(row)

    def several(self, rows: Tensor) -> Tensor:
        """(n, inputs) -> (n, outputs), every row with a step of its own."""
        steps = rows.abs().amax(1, keepdim=True).clamp_min_(SMALLEST).div_(127)
        codes = room(*rows.shape)
        codes[: len(rows)] = torch.div(rows, steps).add_(ZERO + 0.5)  # truncation rounds
        y = self.product(codes)[: len(rows)].mul_(steps)
        return y if self.bias is None else y.add_(self.bias)


class Int8Linear(PackedLinear):
    """Packed int8 weights, with a step an output."""

    operation = "product"

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        quantised, self.scales = quantise_rows(weight)
        self.zeros = torch.zeros(self.outputs, dtype=torch.int64)
        self.packed: Packed = pack(quantised)

    @property
    def compiled(self) -> bool:
        return self.packed.memory is not None and super().compiled

    def product(self, codes: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise.default(
            codes, 1.0, ZERO, self.packed.matrix, self.scales, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class Int4Linear(PackedLinear):
    """4-bit weights, with a step for each 32 inputs of an output."""

    operation = "product_int4"

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        levels, steps, own = round_groups(weight)
        self.packed: Packed4 = pack4(levels, steps, self.inputs)
        self.scales = own / 16  # levels count 16 times

    def product(self, codes: Tensor) -> Tensor:
        return multiply4(codes, self.packed, self.scales)


def pack_linear(weight: Tensor, bias: Tensor | None, weights: str) -> PackedLinear:
    """A layer in "int8" or "int4"."""
    return (Int4Linear if weights == "int4" else Int8Linear)(weight, bias)


def room(rows: int, columns: int) -> Tensor:
    """Uninitialised codes (rows and up to a sixteenth or 7 more, columns) for `Int8Linear.product`.

    oneDNN compiles a product for each number of rows it meets, which takes milliseconds and keeps
    300 KB: a thousand texts of a thousand lengths would take 300 MB.
    """
    step = 1 << max(3, rows.bit_length() - 5) if rows > 8 else 1
    return torch.empty(-(-rows // step) * step, columns, dtype=torch.uint8)


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: (int8 (rows, columns), float32 steps (rows,)).

    Without VNNI the processor adds pairs of products in 16 bits, so weights then keep to ±63:
    2 · 255 · 63 < 2¹⁵.
    """
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise ValueError("weights hold NaN or infinity")
    levels = 127 if has_exact_int8() else 63
    steps = weight.abs().amax(1).clamp_min_(SMALLEST).div_(levels)
    return torch.round(weight / steps[:, None]).to(torch.int8), steps
