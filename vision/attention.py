"""The tower's attention, compiled for the processor. Knows tensors; attention_ir.py the loops."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.compiled import Machine, features, run_pass
from lfm2_mm.rows import Product, bits_of

PAGE = 4096


def attend(product: Product, crops: int, heads: int) -> Tensor:
    """Every patch sees all of its crop: (crops * patches, width), float32.

    product (crops * patches, 3 * width): queries, keys and values of the fused projection.
    """
    if product.bias is None:
        raise ValueError("the projection of queries, keys and values has a bias")
    rows, outputs = product.values.shape
    dim = outputs // 3 // heads
    tiles = has_tiles()
    if not tiles and dim % 8 == 0 and rows // crops % 4 == 0:
        compiled = attention(dim)
        if compiled is not None:
            return compiled(product, crops, heads)
    numbers = product.floats().to(torch.bfloat16 if tiles else torch.float32)
    q, k, v = numbers.view(crops, rows // crops, 3, heads, dim).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).reshape(rows, heads * dim).float()


@functools.cache
def has_tiles() -> bool:
    """Whether the processor multiplies whole tiles of bfloat16 (AMX): torch's attention does so
    there, and is three times as fast as our loops, which cannot."""
    return "amx-bf16" in features()


@functools.cache
def attention(dim: int) -> Attention | None:
    """The loops for heads of `dim`; None where the processor has no products of bfloat16."""
    return Attention(dim) if "avx512bf16" in features() else None


class Attention:
    """Compiled for heads of `dim` numbers, a multiple of 8; crops of a multiple of 4 patches."""

    def __init__(self, dim: int) -> None:
        from vision import attention_ir

        self._ir, self._dim = attention_ir, dim
        self._machine = Machine(attention_ir.module(dim))

    def __call__(self, product: Product, crops: int, heads: int) -> Tensor:
        ir, dim = self._ir, self._dim
        rows = len(product.values)
        patches = rows // crops
        blocks = crops * heads * -(-patches // ir.QUERIES)
        laid = {
            "queries": _halves(blocks * ir.QUERIES * dim),
            "keys": _halves(rows * heads * dim),
            "values": _halves(rows * heads * dim),
        }
        scale = dim**-0.5 / math.log(2)  # scores are powers of 2
        run_pass(
            self._machine.address("lay"), ir.LAY.split(), (0, 0, rows // 2),
            {"product": product.values, "steps": product.steps, "bias": product.bias,
             "heads": heads, "patches": patches, "scale": bits_of(scale), **laid},
        )  # fmt: skip
        apart = -(-ir.scratch_bytes(patches, dim) // PAGE) * PAGE
        scratch = torch.empty(torch.get_num_threads() * apart, dtype=torch.uint8)
        out = torch.empty(rows, heads * dim)
        run_pass(
            self._machine.address("attend"), ir.ATTEND.split(), (0, 0, blocks),
            {"heads": heads, "patches": patches, "out": out, "scratch": scratch, "apart": apart,
             **laid},
        )  # fmt: skip
        return out


def _halves(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.bfloat16)
