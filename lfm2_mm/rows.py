"""Many rows between two int8 products in one pass over memory each. Knows tensors, no models.

torch takes five to eight passes for what one does here: scale a product, add it to x, norm, find
the largest, round. `Rows` is for processors with byte products; `rows_for` says. A row's result
depends on that row alone. Codes differ from PackedLinear.several's by one level where a value lies
between two of them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm2_mm.compiled import Machine, register_width, run_pass
from lfm2_mm.linear import PackedLinear, room


class Codes(NamedTuple):
    """Rows rounded to bytes: values are (codes - 128) · steps."""

    codes: Tensor  # (n or some more, size) uint8: `lfm2_mm.linear.room` says why more
    steps: Tensor  # (n,) float32


class Product(NamedTuple):
    """A matrix product before it is scaled: values · steps + bias is meant. Passes overwrite it."""

    values: Tensor  # (n, outputs) float32
    steps: Tensor  # (n,) float32
    bias: Tensor | None

    def floats(self) -> Tensor:
        """(n, outputs) as they are meant; what `values` held is overwritten."""
        y = self.values.mul_(self.steps[:, None])
        return y if self.bias is None else y.add_(self.bias)


def multiply(codes: Codes, linear: PackedLinear) -> Product:
    """codes (n, inputs) by the layer's weights."""
    values = linear.product(codes.codes)[: len(codes.steps)]
    return Product(values, codes.steps, linear.bias)


@functools.cache
def rows() -> Rows | None:
    """The passes, compiled; None where this processor has no byte products."""
    return None if register_width() is None else Rows()


class Rows:
    """The passes. Sizes are multiples of 16; tensors are contiguous float32 on the CPU."""

    def __init__(self) -> None:
        from lfm2_mm import rows_ir

        self._machine = Machine(rows_ir.module())
        self._fields = {name: fields.split() for name, (fields, _) in rows_ir.PASSES.items()}
        self._addresses = {name: self._machine.address(name) for name in self._fields}

    def norm(
        self,
        x: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        eps: float,
        *,
        add: Product | None = None,
        centred: bool,
    ) -> Codes:
        """Codes of the norm of x (n, size), to which `add` is added first, in place.

        centred: a layer norm; else a norm by the root of the mean square.
        """
        codes = _room(x.shape[0], x.shape[1])
        self._norm(x, weight, shift, eps, add, centred, codes=codes)
        return codes

    def norm_out(
        self,
        x: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        eps: float,
        *,
        add: Product | None = None,
        centred: bool,
    ) -> Tensor:
        """The same as floats (n, size)."""
        out = torch.empty_like(x)
        self._norm(x, weight, shift, eps, add, centred, out=out)
        return out

    def _norm(
        self,
        x: Tensor,
        weight: Tensor,
        shift: Tensor | None,
        eps: float,
        add: Product | None,
        centred: bool,
        *,
        codes: Codes | None = None,
        out: Tensor | None = None,
    ) -> None:
        threads = torch.get_num_threads()
        scratch = torch.empty(threads, x.shape[1])
        self._run(
            "norm", x.shape[0], x=x, size=x.shape[1],
            product=add and add.values, steps=add and add.steps, bias=add and add.bias,
            centred=int(centred), eps=bits_of(eps), weight=weight, shift=shift,
            scratch=scratch, out=out,
            codes=codes and codes.codes, out_steps=codes and codes.steps,
        )  # fmt: skip

    def gelu(self, product: Product) -> Codes:
        """Codes of gelu (by tanh) of (n, size)."""
        return self._activation("gelu", product, product.values.shape[1])

    def swiglu(self, product: Product) -> Codes:
        """Codes of silu(gate) · up, (n, size), of a product (n, 2 size): gates, then ups."""
        return self._activation("swiglu", product, product.values.shape[1] // 2)

    def _activation(self, name: str, product: Product, size: int) -> Codes:
        out = _room(len(product.values), size)
        self._run(
            name, len(product.values), product=product.values, size=size, steps=product.steps,
            bias=product.bias, codes=out.codes, out_steps=out.steps,
        )  # fmt: skip
        return out

    def round(self, x: Tensor) -> Codes:
        """Codes of x (n, size)."""
        out = _room(*x.shape)
        self._run(
            "round_rows", len(x), product=x, size=x.shape[1],
            codes=out.codes, out_steps=out.steps,
        )  # fmt: skip
        return out

    def _run(self, name: str, rows: int, **fields: Tensor | int | None) -> None:
        run_pass(self._addresses[name], self._fields[name], (0, 0, rows), fields)


def _room(rows: int, size: int) -> Codes:
    return Codes(room(rows, size), torch.empty(rows))


def bits_of(value: float) -> int:
    """A float as passes take it: the bits of a double."""
    return int(np.float64(value).view(np.int64))
