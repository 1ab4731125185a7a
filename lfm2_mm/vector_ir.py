"""Arithmetic of vectors that the processor has no instruction for. Knows lanes, no models."""

from __future__ import annotations

from collections.abc import Sequence

from lfm2_mm.emit import F32, I16, I32, Function, Value, vector

LANES = 16
FLOATS, INTS = vector(F32, LANES), vector(I32, LANES)
WHOLE = 1.5 * 2.0**23  # added to a float below 2²², it leaves nothing behind the point


def dot(f: Function, wide: bool, sums: Value, unsigned: Value, signed: Value) -> Value:
    """sums (16 int32) + products of four unsigned with four signed bytes in each lane.

    wide: one instruction for 64 bytes, else two for 32 each.
    """
    if wide:
        return f.call("llvm.x86.avx512.vpdpbusd.512", INTS, sums, unsigned, signed)
    low, high = (
        f.call("llvm.x86.avx512.vpdpbusd.256", vector(I32, 8),
               sums.lanes(part), unsigned.lanes(part), signed.lanes(part))
        for part in (range(8), range(8, 16))
    )  # fmt: skip
    return low.lanes(range(16), high)


def exponential(f: Function, x: Value) -> Value:
    """e to the x, to 2e-7 of itself; below -87 it is 1e-38 rather than 0. NaN stays NaN."""
    x = f.larger(x, f.number(-87.0, FLOATS))
    x = x.compare(">", 88.0).where(f.number(88.0, FLOATS), x)
    shifted = f.fma(x, f.number(1.4426950408889634, FLOATS), f.number(WHOLE, FLOATS))
    n = shifted - WHOLE
    x = f.fma(n, f.number(-0.693145751953125, FLOATS), x)  # ln 2 in two parts: n times the
    x = f.fma(n, f.number(-1.428606765330187e-06, FLOATS), x)  # first is exact
    y = f.number(1 / 720, FLOATS)
    for term in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        y = f.fma(y, x, f.number(term, FLOATS))
    power = (shifted.bits(INTS) + 127) << 23  # the lowest bits of `shifted` are those of n
    return y * power.bits(FLOATS)


def truncated(f: Function, x: Value) -> Value:
    """Floats below 2³¹ to int32, cut towards zero; NaN becomes 0. (LLVM's own saturating
    conversion takes each lane by itself.)"""
    return x.is_nan().where(f.number(0.0, FLOATS), x).to(I32)


def read(f: Function, half: bool, address: Value) -> Value:
    """16 floats, stored as float32 or (half) as bfloat16."""
    if not half:
        return f.load(FLOATS, address)
    return (f.load(vector(I16, LANES), address).to(I32) << 16).bits(FLOATS)


def write(f: Function, half: bool, value: Value, address: Value) -> Value:
    """Store 16 floats so, rounded to nearest even; returns what was kept of them."""
    if not half:
        f.store(value, address)
        return value
    bits = value.bits(INTS)
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    kept = value.is_nan().where(f.number(0x7FC0, INTS), rounded)
    f.store(kept.to(I16), address)
    return (kept << 16).bits(FLOATS)


# Sums of 16 vectors at once: halves, quarters, pairs and neighbours of two vectors are added, with
# shuffles that take one instruction each. (lanes of a and b that are added to these lanes)
_ROUNDS = (
    ([*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]),
    ([*range(4), *range(8, 12), *range(16, 20), *range(24, 28)],
     [*range(4, 8), *range(12, 16), *range(20, 24), *range(28, 32)]),
    ([4 * q + base + i for q in range(4) for base in (0, 16) for i in (0, 1)],
     [4 * q + base + i for q in range(4) for base in (0, 16) for i in (2, 3)]),
    ([4 * q + base + i for q in range(4) for base in (0, 16) for i in (0, 2)],
     [4 * q + base + i for q in range(4) for base in (0, 16) for i in (1, 3)]),
)  # fmt: skip


def _places() -> list[int]:
    """For each place in the queue of 16 vectors, the lane that its sum comes out in."""
    queue = [[place] * LANES for place in range(LANES)]
    for lanes, _ in _ROUNDS:
        pairs = zip(queue[::2], queue[1::2], strict=True)
        queue = [[(a + b)[lane] for lane in lanes] for a, b in pairs]
    return [queue[0].index(place) for place in range(LANES)]


_PLACES = _places()


def sums_of(vectors: Sequence[Value]) -> Value:
    """The total of each of 16 vectors, in its lane."""
    queue = [vectors[lane] for lane in _PLACES]
    for low, high in _ROUNDS:
        pairs = zip(queue[::2], queue[1::2], strict=True)
        queue = [a.lanes(low, b) + a.lanes(high, b) for a, b in pairs]
    return queue[0]
