"""4-bit weights: how they are rounded, how they lie, and many rows through them.

32 inputs of an output share a step, kept in float16 relative to the output's own float32 step, so
4.5 bits a weight are read. A matrix lies in blocks of 64 outputs; for each 32 inputs a block has
its 64 steps and then, for 16 outputs at a time, 4 times 64 bytes: byte b of lane o in vector v
holds the levels of inputs 8 v + b (lower half) and 8 v + 4 + b. Knows bytes, no layers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm import arena
from lfm2_mm.compiled import Machine, register_width, run_pass
from lfm2_mm.packed import BLOCK

GROUP = 32  # inputs that share a step
UNIT = 2 * BLOCK + BLOCK * GROUP // 2  # bytes of 32 inputs of a block: steps, then levels
SMALLEST = 1e-30  # as lfm2_mm.linear has it
TRIED = (1.0, 0.95, 0.9, 0.85)  # of the step that holds the largest weight
ROWS = 64  # outputs that are rounded together: what is in between stays near the processor


class Packed4(NamedTuple):
    """A packed matrix. Levels count 16 times: that is how the product takes them."""

    memory: np.ndarray  # blocks · groups · UNIT bytes, then a float32 an output
    outputs: int
    inputs: int

    @property
    def blocks(self) -> int:
        return -(-self.outputs // BLOCK)

    @property
    def groups(self) -> int:
        return -(-self.inputs // GROUP)

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def sums(self) -> int:
        """The address of -128 times the sum of each output's weights, steps included: what codes
        around 128 add too much."""
        return self.address + self.blocks * self.groups * UNIT

    def units(self) -> np.ndarray:
        """(blocks, groups, UNIT) uint8, as they lie."""
        size = self.blocks * self.groups * UNIT
        return self.memory[:size].reshape(self.blocks, self.groups, UNIT)


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs, inputs) float -> levels (outputs, groups, 32) int8 in -8..7, steps (outputs,
    groups) float16 relative to the output's own, and those (outputs,) float32.

    Of some steps the one with the least squared error is taken; the largest weight of a group has
    level -8 at the widest of them, so a step may be negative. NaN and infinity are refused.
    """
    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP)
    if not torch.isfinite(weight).all():
        raise ValueError("weights hold NaN or infinity")
    levels = torch.empty(outputs, groups, GROUP, dtype=torch.int8)
    steps, own = torch.empty(outputs, groups, dtype=torch.float16), torch.empty(outputs)
    for first in range(0, outputs, ROWS):
        here = slice(first, first + ROWS)
        rows = weight[here].detach().float()
        rows = F.pad(rows, (0, groups * GROUP - inputs)).view(len(rows), groups, GROUP)
        levels[here], steps[here], own[here] = _rounded(rows)
    return levels, steps, own


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs, groups, 32) float32 -> levels as floats, relative steps, and the outputs' own."""
    high, low = rows.amax(2, keepdim=True), rows.amin(2, keepdim=True)
    widest = torch.where(high >= -low, high, low) / -8
    own = widest.abs().amax(1, keepdim=True).clamp_min_(SMALLEST)
    tried = (torch.tensor(TRIED)[:, None, None, None] * (widest / own)).half()
    steps = tried.float() * own
    inverse = torch.where(steps == 0, 0.0, 1 / steps)
    found, ones = torch.empty_like(rows), torch.ones(GROUP, 1)
    errors = []
    for step, by in zip(steps, inverse, strict=True):
        torch.mul(rows, by, out=found).round_().clamp_(-8, 7).mul_(step).sub_(rows).square_()
        errors.append(found.view(-1, GROUP) @ ones)
    best = torch.cat(errors, 1).argmin(1).view(1, *widest.shape)
    torch.mul(rows, inverse.gather(0, best)[0], out=found).round_().clamp_(-8, 7)
    return found, tried.gather(0, best)[0, ..., 0], own[:, 0, 0]


def pack4(levels: Tensor, steps: Tensor, inputs: int) -> Packed4:
    """What `round_groups` made, laid out."""
    outputs, groups, _ = levels.shape
    blocks = -(-outputs // BLOCK)
    memory = arena.weights.take(blocks * groups * UNIT + 4 * blocks * BLOCK)
    packed = Packed4(memory, outputs, inputs)
    units = packed.units()
    for block, unit in enumerate(units):
        own = levels[BLOCK * block : BLOCK * (block + 1)].numpy()
        whole = np.zeros((BLOCK, groups, GROUP), np.int8)
        whole[: len(own)] = own
        # outputs (part, lane), groups, inputs (vector, half, byte)
        parts = (whole.view(np.uint8) & 15).reshape(4, 16, groups, 4, 2, 4)
        both = parts[..., 0, :] | (parts[..., 1, :] << 4)
        unit[:, 2 * BLOCK :] = both.transpose(2, 0, 3, 1, 4).reshape(groups, -1)
        widths = np.zeros((groups, BLOCK), np.float16)
        widths[:, : len(own)] = steps[BLOCK * block : BLOCK * (block + 1)].numpy().T
        unit[:, : 2 * BLOCK] = widths.view(np.uint8)
    sums = (levels.sum(2, dtype=torch.float32) * steps.float()).sum(1) * (-128 * 16)
    memory[units.size :].view(np.float32)[:outputs] = sums.numpy()
    return packed


def unpacked(packed: Packed4, first: int, last: int) -> Tensor:
    """(64 · (last - first), inputs) float32: 16 times the weights of these blocks, in units of
    each output's step; outputs that pad the last block are zero."""
    units = packed.units()[first:last]
    steps = np.ascontiguousarray(units[..., : 2 * BLOCK]).view(np.float16)  # (blocks, groups, 64)
    both = units[..., 2 * BLOCK :].reshape(-1, packed.groups, 4, 4, 16, 4)
    halves = np.stack([both << 4, both & 0xF0], 4).view(np.int8)  # part, vector, half, lane, byte
    levels = torch.from_numpy(halves).permute(0, 2, 5, 1, 3, 4, 6).reshape(-1, packed.groups, GROUP)
    wide = torch.from_numpy(steps).transpose(1, 2).reshape(-1, packed.groups, 1)
    return (levels.float() * wide.float()).flatten(1)[:, : packed.inputs]


def multiply4(codes: Tensor, packed: Packed4, scales: Tensor) -> Tensor:
    """codes (n, inputs) uint8 around 128 -> (n, outputs) float32, before rows' steps and bias.

    scales (outputs,): the outputs' steps, a sixteenth of them. A row's result is the same in every
    batch, bit for bit, where the processor has byte products; elsewhere the weights are unpacked a
    part at a time, which is right and slow.
    """
    found = kernel()
    if found is None:
        return _by_torch(codes, packed, scales)
    return found(codes, packed, scales)


def _by_torch(codes: Tensor, packed: Packed4, scales: Tensor, together: int = 16) -> Tensor:
    rows = codes.float() - 128
    parts = [
        rows @ unpacked(packed, block, min(block + together, packed.blocks)).T
        for block in range(0, packed.blocks, together)
    ]
    return torch.cat(parts, 1)[:, : packed.outputs] * scales


class Kernel:
    """The compiled product of many rows."""

    def __init__(self, wide: bool) -> None:
        from lfm2_mm import int4_ir

        self._fields = int4_ir.FIELDS.split()
        self._address = (machine := Machine(int4_ir.module(wide))).address("product")
        self._machine = machine

    def __call__(self, codes: Tensor, packed: Packed4, scales: Tensor) -> Tensor:
        rows, width = len(codes), packed.groups * GROUP
        if codes.shape[1] != width:  # the product reads whole groups
            codes = F.pad(codes, (0, width - codes.shape[1]), value=128)
        padded = packed.blocks * BLOCK
        if len(scales) != padded:
            scales = F.pad(scales, (0, padded - len(scales)))
        out = torch.empty(rows, padded)
        run_pass(
            self._address, self._fields, (0, 0, packed.blocks),
            {"weights": packed.address, "groups": packed.groups, "codes": codes.contiguous(),
             "count": rows, "scales": scales, "sums": packed.sums, "out": out, "apart": 4 * padded},
        )  # fmt: skip
        return out if padded == packed.outputs else out[:, : packed.outputs].contiguous()


@functools.cache
def kernel() -> Kernel | None:
    """None where the processor has no byte products."""
    width = register_width()
    return None if width is None else Kernel(width == 64)
