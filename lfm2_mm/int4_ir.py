"""Products with 4-bit weights, for LLVM. lfm2_mm.int4 says how they lie.

A level lies in the upper half of a byte as a number with sign, so that shifting or cutting is all
that unpacking takes and a sum of products is 16 times too large. Sums of 32 inputs are exact; they
are scaled by the group's step and added as floats, always in the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from lfm2_mm.emit import F16, F32, I32, Function, Slot, Value, vector
from lfm2_mm.rows_ir import Pass
from lfm2_mm.vector_ir import FLOATS, INTS, LANES, dot

BLOCK = 64  # outputs
UNIT = 128 + 1024  # bytes of a block for 32 inputs: as lfm2_mm.int4 has it
PART = 256  # bytes of 16 outputs in it
UPPER = 0xF0F0F0F0 - (1 << 32)
TILES = (8, 4, 2, 1)  # rows that share an unpacked vector
FIELDS = "weights groups codes count scales sums out apart"


def group_sums(
    f: Function, wide: bool, unit: Value, codes: Sequence[Value], totals: Sequence[Sequence[Slot]],
    first: int,
) -> None:  # fmt: skip
    """Add what 32 inputs give to `totals`: of each row of `codes` a slot for each part from `first`
    on. unit: where the block's 32 inputs lie; codes: where a row's do."""
    for part in range(len(totals[0])):
        place = first + part
        sums = [f.number(0, INTS) for _ in codes]
        for number in range(4):
            both = f.load(INTS, unit, 128 + PART * place + 4 * LANES * number)
            for half, levels in enumerate(((both << 4) & UPPER, both & UPPER)):
                for row, at in enumerate(codes):
                    four = f.load(I32, at, 8 * number + 4 * half).spread(LANES)
                    sums[row] = dot(f, wide, sums[row], four, levels)
        step = f.load(vector(F16, LANES), unit, 2 * LANES * place).to(F32)
        for row, total in enumerate(sums):
            slot = totals[row][part]
            slot.set(f.fma(total.to(F32), step, slot.get()))


def module(wide: bool) -> str:
    """`product`: rows of codes through a matrix; threads take blocks of 64 outputs by turns.

    codes: `count` rows of 32 · groups bytes; out: rows of floats, `apart` bytes each.
    """
    whole = ir.Module("int4")
    p = Pass(whole, "product", FIELDS)
    f, count = p.f, p.count
    with p.each_row(1) as block:
        here = f.slot(f.number(0))
        for tile in TILES:
            _rows(p, wide, block, here, count, tile)
    f.finish()
    return str(whole)


def _rows(p: Pass, wide: bool, block: Value, here: Slot, count: Value, tile: int) -> None:
    """From row `here` on, as many times `tile` rows as there are."""
    with p.f.until(lambda: here.get().compare(">", count - tile)):
        for part in range(BLOCK // LANES):
            _tile(p, wide, block, here.get(), tile, part)
        here.set(here.get() + tile)


def _tile(p: Pass, wide: bool, block: Value, row: Value, tile: int, part: int) -> None:
    """`tile` rows from `row` on, and 16 outputs."""
    f, groups = p.f, p.groups
    width = groups * 32
    at = block * (4 * BLOCK) + 4 * LANES * part
    first = f.load(FLOATS, p.sums + at)
    totals = [[f.slot(first)] for _ in range(tile)]
    weights, codes = p.weights + block * groups * UNIT, p.codes + row * width
    with f.loop(f.number(0), groups) as group:
        rows = [codes + width * number + group * 32 for number in range(tile)]
        group_sums(f, wide, weights + group * UNIT, rows, totals, part)
    scales = f.load(FLOATS, p.scales + at)
    for number, (total,) in enumerate(totals):
        f.store(total.get() * scales, p.out + (row + number) * p.apart + at)
