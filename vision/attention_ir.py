"""Attention of every patch to every other, for LLVM. Knows numbers in memory, no tensors.

Queries lie in the lanes of registers, `QUERIES` in a block: then largest scores, sums and weights
are found lane by lane and nothing is ever summed across a register. Products are those of pairs of
bfloat16, summed in float32, as torch's attention of that dtype has them; scores stay float32.

Two functions, called by all threads of a team at once. `lay` brings a product of the fused
projection into the layouts of `attend`, a head of a crop after another:
queries [blocks][dim / 2][QUERIES][2], keys [patches][dim], values [patches / 2][dim][2].
"""

from __future__ import annotations

from llvmlite import ir

from lfm2_mm.emit import F32, I16, I32, Function, Slot, Value, vector
from lfm2_mm.rows_ir import COARSE, Pass, larger, power_of_two
from lfm2_mm.vector_ir import FLOATS, INTS, LANES

ACROSS = 4  # registers of queries
QUERIES = ACROSS * LANES
DOWN = 4  # keys, or dimensions of values, whose sums are in flight together
PORTION = 128  # keys whose weights are made, and then used while they are near
LINE = 4 * QUERIES  # bytes of a number for each query of a block
LAY = "product steps bias heads patches scale queries keys values"
ATTEND = "queries keys values heads patches out scratch apart"


class _Bfloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash("bfloat")


PAIRS = ir.VectorType(_Bfloat(), 2 * LANES)


def module(dim: int) -> str:
    """Both functions for heads of `dim` numbers, a multiple of 8."""
    whole = ir.Module("attention")
    for name, fields, write in (("lay", LAY, _lay), ("attend", ATTEND, _attend)):
        p = Pass(whole, name, fields)
        write(p, dim)
        p.f.finish()
    return str(whole)


def scratch_bytes(patches: int, dim: int) -> int:
    """What a thread of `attend` needs: scores, weights of a portion, sums of values."""
    return LINE * (patches + PORTION // 2 + dim)


# Laying out


def _lay(p: Pass, dim: int) -> None:
    """Two neighbouring patches at a time, since values lie in pairs."""
    f, heads, patches = p.f, p.heads, p.patches
    wide = 16 if dim % 16 == 0 else 8
    with p.each_row() as pair:
        crop = pair * 2 / patches
        first = pair * 2 - crop * patches
        with f.loop(f.number(0), heads) as head:
            here = crop * heads + head
            for start in range(0, dim, wide):
                column = head * (4 * dim) + 4 * start
                parts = [_numbers(p, pair * 2 + row, column, dim, wide) for row in (0, 1)]
                for row, (query, key, _) in enumerate(parts):
                    _store_query(p, here, first + row, query, start, dim)
                    f.store(
                        key.to(I16), p.keys + ((here * patches + first + row) * dim + start) * 2
                    )
                pairs = _or(parts[0][2], parts[1][2] << 16)
                f.store(pairs, p.values + ((here * patches + first) / 2 * dim + start) * 4)


def _numbers(p: Pass, row: Value, column: Value, dim: int, wide: int) -> list[Value]:
    """`wide` numbers of a row's query, key and value, as bfloat16 in the low halves of int32."""
    f, floats = p.f, vector(F32, wide)
    width = p.heads * (4 * dim)
    step = f.load(F32, p.steps + row * 4).spread(wide)
    out = []
    for part in range(3):
        at = column + width * part
        y = f.fma(
            f.load(floats, p.product + row * width * 3 + at), step, f.load(floats, p.bias + at)
        )
        out.append(_rounded(y * p.number("scale", wide) if part == 0 else y))
    return out


def _rounded(x: Value) -> Value:
    """bfloat16, in the low half of each int32."""
    return (x.bits(vector(I32, x.ir.type.count)) + 0x8000) >> 16


def _or(a: Value, b: Value) -> Value:
    return Value(a.code, a.code.builder.or_(a.ir, b.ir))


def _store_query(p: Pass, here: Value, place: Value, query: Value, start: int, dim: int) -> None:
    """A row's pairs go into one lane each of as many registers."""
    f = p.f
    blocks = (p.patches + (QUERIES - 1)) / QUERIES
    block = place / QUERIES
    lane = place - block * QUERIES
    base = p.queries + (here * blocks + block) * (LINE * dim // 2) + lane * 4
    count = query.ir.type.count
    pairs = query.to(I16).bits(vector(I32, count // 2))
    for number in range(count // 2):
        one = Value(f, f.builder.extract_element(pairs.ir, I32(number)))
        f.store(one, base, LINE * (start // 2 + number))


# Attending


def _attend(p: Pass, dim: int) -> None:
    """A block of queries of one head of one crop at a time."""
    f, patches, heads = p.f, p.patches, p.heads
    scores = p.scratch + f.atomic_add(p.place("ticket"), 1) * p.apart
    weights = scores + patches * LINE
    sums = weights + PORTION // 2 * LINE
    blocks = (patches + (QUERIES - 1)) / QUERIES
    with p.each_row(1) as item:
        here = item / blocks
        block = item - here * blocks
        keys = p.keys + here * patches * (2 * dim)
        values = p.values + here * patches * (2 * dim)
        tops = _score(f, p.queries + item * (LINE * dim // 2), keys, patches, scores, dim)
        with f.loop(f.number(0), f.number(dim)) as number:
            for part in range(ACROSS):
                f.store(f.number(0.0, FLOATS), sums + number * LINE, 4 * LANES * part)
        totals = [f.slot(f.number(0.0, FLOATS)) for _ in range(ACROSS)]
        with f.loop(f.number(0), patches, PORTION) as first:
            end = first + PORTION
            pairs = (end.compare("<", patches).where(end, patches) - first) / 2
            _weigh(f, scores + first * LINE, pairs, tops, totals, weights)
            _mix(f, values + first * (2 * dim), pairs, weights, sums, dim)
        crop = here / heads
        row = crop * patches + block * QUERIES
        out = p.out + (row * heads + (here - crop * heads)) * (4 * dim)
        _store_sums(p, sums, totals, patches - block * QUERIES, out, dim)


def _score(
    f: Function, queries: Value, keys: Value, patches: Value, scores: Value, dim: int
) -> list[Value]:
    """Scores of every key for the block's queries; the largest for each."""
    tops = [f.slot(f.number(float("-inf"), FLOATS)) for _ in range(ACROSS)]
    with f.loop(f.number(0), patches, DOWN) as key:
        found = _grid(f)
        with f.loop(f.number(0), f.number(dim // 2), 4) as pair:
            for unrolled in range(4):
                across = _line(f, INTS, queries + pair * LINE, LINE * unrolled)
                rows = keys + key * (2 * dim) + pair * 4
                _multiply(f, found, across, rows, 4 * unrolled, 2 * dim)
        for row, line in enumerate(found):
            for part, (slot, top) in enumerate(zip(line, tops, strict=True)):
                f.store(slot.get(), scores + key * LINE, LINE * row + 4 * LANES * part)
                top.set(larger(f, slot.get(), top.get()))
    return [top.get() for top in tops]


def _weigh(
    f: Function, scores: Value, pairs: Value, tops: list[Value], totals: list[Slot], weights: Value
) -> None:
    """2 to the (score - largest) of pairs of keys, as bfloat16 side by side; their sums."""
    with f.loop(f.number(0), pairs) as pair:
        for part, (top, total) in enumerate(zip(tops, totals, strict=True)):
            low, high = (
                power_of_two(f, f.load(FLOATS, scores + pair * (2 * LINE), at) - top, COARSE)
                for at in (4 * LANES * part, LINE + 4 * LANES * part)
            )
            total.set(total.get() + (low + high))
            both = _or(_rounded(low), (high.bits(INTS) + 0x8000) & -0x10000)
            f.store(both, weights + pair * LINE, 4 * LANES * part)


def _mix(f: Function, values: Value, pairs: Value, weights: Value, sums: Value, dim: int) -> None:
    """sums [dim][QUERIES] += weights · values."""
    with f.loop(f.number(0), f.number(dim), DOWN) as number:
        found = _grid(f)
        with f.loop(f.number(0), pairs) as pair:
            across = _line(f, INTS, weights + pair * LINE)
            _multiply(f, found, across, values + pair * (4 * dim) + number * 4, 0, 4)
        for row, line in enumerate(found):
            before = _line(f, FLOATS, sums + number * LINE, LINE * row)
            for part, (slot, old) in enumerate(zip(line, before, strict=True)):
                f.store(old + slot.get(), sums + number * LINE, LINE * row + 4 * LANES * part)


def _store_sums(
    p: Pass, sums: Value, totals: list[Slot], left: Value, out: Value, dim: int
) -> None:
    """Of the `left` queries that are real: a number goes from a lane into each one's row."""
    f = p.f
    inverse = [f.number(1.0, FLOATS) / total.get() for total in totals]
    apart = p.heads * (4 * dim)
    with f.loop(f.number(0), f.number(dim)) as number:
        for part, y in enumerate(_line(f, FLOATS, sums + number * LINE)):
            mixed = y * inverse[part]
            for lane in range(LANES):
                query = LANES * part + lane
                with f.when(left.compare(">", query)):
                    one = Value(f, f.builder.extract_element(mixed.ir, I32(lane)))
                    f.store(one, out + apart * query + number * 4)


def _grid(f: Function) -> list[list[Slot]]:
    """Sums in flight: DOWN x ACROSS registers."""
    return [[f.slot(f.number(0.0, FLOATS)) for _ in range(ACROSS)] for _ in range(DOWN)]


def _line(f: Function, kind: ir.Type, at: Value, offset: int = 0) -> list[Value]:
    return [f.load(kind, at, offset + 4 * LANES * part) for part in range(ACROSS)]


def _multiply(
    f: Function, sums: list[list[Slot]], across: list[Value], rows: Value, offset: int, apart: int
) -> None:
    """sums[i][j] += across[j] · the pair of bfloat16 at `rows` + i · apart."""
    for row, line in enumerate(sums):
        pair = f.load(I32, rows, offset + apart * row).spread(LANES).bits(PAIRS)
        for slot, lanes in zip(line, across, strict=True):
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            slot.set(f.call(name, FLOATS, slot.get(), lanes.bits(PAIRS), pair))
