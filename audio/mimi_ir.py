"""What Mimi's frame needs beside attention, for LLVM: float products of some rows, and what lies
between them. Knows numbers in memory, no layers.

Weights lie in blocks of 16, 32 or 64 outputs, [inputs][outputs of the block], as float32, or (64)
bfloat16; arithmetic is float32. A convolution is a product whose rows overlap: `row_apart` is then
less than a row.
"""

from __future__ import annotations

from lfm2_mm.emit import F32, F64, Slot, Value
from lfm2_mm.step_ir import OPERATIONS, Share, Table
from lfm2_mm.vector_ir import FLOATS, LANES, exponential, read

VOICE = Table(attend=OPERATIONS["attend"])
TILES = (6, 2, 1)  # rows whose sums stay in registers together
UNROLLED = 4  # inputs
# erf z = 1 - (a polynomial of 1 / (1 + P z)) · e to the -z², to 1.5e-7 (Abramowitz, Stegun 7.1.26)
P = 0.3275911
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
FIELDS = "x apart row_apart rows chunk inputs weights blocks bias out out_apart adds"


def product_name(parts: int, half: bool) -> str:
    """The operation for blocks of 16 · `parts` outputs, with weights in bfloat16 or float32."""
    return f"product_{parts}{'_half' if half else ''}"


def _register(parts: int, half: bool) -> None:
    def product(s: Share) -> None:
        """out (+)= x · weights + bias, for `rows` rows of `inputs` numbers (a multiple of 4).

        The team shares blocks times chunks of `chunk` rows. apart: from one thread's copy of x to
        the next's; adds: 1 to add to what `out` holds.
        """
        f, rows, chunk, inputs = s.f, s.rows, s.chunk, s.inputs
        chunks = (rows + chunk - 1) / chunk
        size = (2 if half else 4) * LANES * parts
        with s.part_of(s.blocks * chunks) as item:
            block = item / chunks
            here = f.slot((item - block * chunks) * chunk)
            end = here.get() + chunk
            last = end.compare("<", rows).where(end, rows)
            for tile in TILES:
                _tiles(s, s.weights + block * inputs * size, block, here, last, tile, parts, half)

    VOICE.operation(FIELDS, name=product_name(parts, half))(product)


def _tiles(
    s: Share, weights: Value, block: Value, here: Slot, last: Value, tile: int, parts: int,
    half: bool,
) -> None:  # fmt: skip
    """From row `here` on, as many times `tile` rows as there are before `last`."""
    f, row_apart = s.f, s.row_apart
    width = 4 * LANES * parts
    with f.until(lambda: here.get().compare(">", last - tile)):
        x = s.own(s.x) + here.get() * row_apart
        bias = [f.load(FLOATS, s.bias + block * width, 4 * LANES * p) for p in range(parts)]
        sums = [[f.slot(b) for b in bias] for _ in range(tile)]
        rows = [x + row_apart * number for number in range(tile)]
        with f.loop(f.number(0), s.inputs, UNROLLED) as first:
            for number in range(UNROLLED):
                at = weights + (first + number) * ((2 if half else 4) * LANES * parts)
                each = [read(f, half, at + (2 if half else 4) * LANES * p) for p in range(parts)]
                for row, totals in zip(rows, sums, strict=True):
                    value = f.load(F32, row + first * 4, 4 * number).spread(LANES)
                    for total, weight in zip(totals, each, strict=True):
                        total.set(f.fma(value, weight, total.get()))
        out = s.out + here.get() * s.out_apart + block * width
        with f.when(s.adds.compare("!=", 0)):
            for number, totals in enumerate(sums):
                for part, total in enumerate(totals):
                    there = f.load(FLOATS, out + s.out_apart * number, 4 * LANES * part)
                    total.set(total.get() + there)
        for number, totals in enumerate(sums):
            for part, total in enumerate(totals):
                f.store(total.get(), out + s.out_apart * number, 4 * LANES * part)
        here.set(here.get() + tile)


for _parts, _half in ((4, True), (4, False), (2, False), (1, False)):
    _register(_parts, _half)


@VOICE.operation("x rows size weight bias eps out apart", shared=False)
def layer_norm(s: Share) -> None:
    """Each of `rows` rows of `size` numbers: (x - mean) / sqrt(variance + eps) · weight + bias, a
    copy for each thread. eps: the bits of a double."""
    f, size = s.f, s.size
    count, eps = size.to(F32), s.eps.bits(F64).to(F32)
    with f.loop(f.number(0), s.rows) as row:
        x, out = s.x + row * size * 4, s.own(s.out) + row * size * 4
        total = f.slot(f.number(0.0, FLOATS))
        with s.lanes_of(size) as at:
            total.set(total.get() + f.load(FLOATS, x + at))
        mean = (f.total(total.get()) / count).spread(LANES)
        squares = f.slot(f.number(0.0, FLOATS))
        with s.lanes_of(size) as at:
            centred = f.load(FLOATS, x + at) - mean
            squares.set(f.fma(centred, centred, squares.get()))
        variance = f.total(squares.get()) / count + eps
        deviation = f.call("llvm.sqrt.f32", F32, variance)
        scale = (f.number(1.0, F32) / deviation).spread(LANES)
        with s.lanes_of(size) as at:
            normed = (f.load(FLOATS, x + at) - mean) * scale
            f.store(f.fma(normed, f.load(FLOATS, s.weight + at), f.load(FLOATS, s.bias + at)),
                    out + at)  # fmt: skip


@VOICE.operation("x size out")
def elu(s: Share) -> None:
    """out = x where x is positive, else e to the x - 1."""
    f = s.f
    with s.part_of(s.size / LANES) as number:
        x = f.load(FLOATS, s.x + number * (4 * LANES))
        below = exponential(f, x.compare("<", 0.0).where(x, 0.0)) - 1.0
        f.store(x.compare(">", 0.0).where(x, below), s.out + number * (4 * LANES))


@VOICE.operation("x size out")
def gelu(s: Share) -> None:
    """out = x (1 + erf(x / sqrt 2)) / 2."""
    f = s.f
    with s.part_of(s.size / LANES) as number:
        x = f.load(FLOATS, s.x + number * (4 * LANES))
        z = f.larger(x, f.number(0.0, FLOATS) - x) * 0.5**0.5
        t = f.number(1.0, FLOATS) / f.fma(z, f.number(P, FLOATS), f.number(1.0, FLOATS))
        y = f.number(ERF[0], FLOATS)
        for term in ERF[1:]:
            y = f.fma(y, t, f.number(term, FLOATS))
        beyond = y * t * exponential(f, f.number(0.0, FLOATS) - z * z) * x * 0.5
        f.store(x.compare(">", 0.0).where(x - beyond, beyond), s.out + number * (4 * LANES))
