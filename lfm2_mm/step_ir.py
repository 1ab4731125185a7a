"""The operations of one decoding step, for LLVM. Knows numbers in memory, no modules or tensors.

A program is a list of addresses of operations, each some numbers of 64 bits: the kind, whether
the team waits for all of its threads afterwards, and the fields that `@operation` names, mostly
addresses. Every thread runs through the whole list and takes its share of each operation. What is
small each does for itself, into a copy of its own (`apart` bytes from the next), since waiting for
each other would cost more.

Rows are padded to whole lanes. Weights lie as lfm2_mm.packed says: one instruction takes four
inputs of 16 outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from llvmlite import ir

from lfm2_mm.emit import F32, F64, I8, I32, I64, Function, Value
from lfm2_mm.int4_ir import UNIT, group_sums
from lfm2_mm.vector_ir import (
    FLOATS,
    INTS,
    LANES,
    dot,
    exponential,
    read,
    sums_of,
    truncated,
    write,
)

BLOCK = 64  # outputs that are computed together
SMALLEST = 1e-30  # as lfm2_mm.linear has it
SPINS = 2000  # looks at a barrier before the core is offered to others


@dataclass(frozen=True)
class Shape:
    """What the code is made for."""

    head_dim: int
    group: int  # query heads of a key head
    half: bool  # the state is kept in bfloat16
    wide: bool = True  # registers of 64 bytes
    pairs: bool = False  # rotary positions turn neighbours, not halves


class Share:
    """One thread's view of an operation: its fields, and its part of the work."""

    def __init__(self, f: Function, shape: Shape, fields: list[str]) -> None:
        self.f, self.shape = f, shape
        self._op, self.thread, self.threads = f.arguments
        self._fields = fields

    def __getattr__(self, name: str) -> Value:
        return self.f.load(I64, self._op, 8 * (2 + self._fields.index(name)))

    def own(self, address: Value) -> Value:
        """This thread's copy of what lies at `address`."""
        return address + self.thread * self.apart

    @contextmanager
    def part_of(self, total: Value) -> Iterator[Value]:
        """The numbers below `total` that are this thread's."""
        first = total * self.thread / self.threads
        last = total * (self.thread + 1) / self.threads
        with self.f.loop(first, last) as i:
            yield i

    @contextmanager
    def lanes_of(self, size: Value) -> Iterator[Value]:
        """Offsets of 16 floats each, in bytes, over all `size` floats."""
        with self.f.loop(self.f.number(0), size * 4, 4 * LANES) as offset:
            yield offset


class Operation(NamedTuple):
    fields: list[str]
    body: Callable[[Share], None]
    shared: bool  # the team does it together, and waits until it is done


class Table(dict[str, Operation]):
    """The operations that are compiled together, by name; each table is a key of its own."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def operation(
        self, fields: str, shared: bool = True, name: str | None = None
    ) -> Callable[[Callable[[Share], None]], Callable[[Share], None]]:
        """Register an operation under its name, with its fields in order."""

        def register(body: Callable[[Share], None]) -> Callable[[Share], None]:
            self[name or body.__name__] = Operation(fields.split(), body, shared)
            return body

        return register

    def kind(self, name: str) -> int:
        return list(self).index(name)


OPERATIONS = Table()
operation = OPERATIONS.operation


# Rows


@operation("x weight size eps out apart", shared=False)
def norm(s: Share) -> None:
    """out = x / sqrt(mean(x²) + eps) · weight, a copy for each thread."""
    f, x, weight, out = s.f, s.x, s.weight, s.own(s.out)
    scale = _inverse_deviation(s, x, s.size, s.eps)
    with s.lanes_of(s.size) as at:
        f.store(f.load(FLOATS, x + at) * scale * f.load(FLOATS, weight + at), out + at)


def _inverse_deviation(s: Share, x: Value, size: Value, eps: Value) -> Value:
    """1 / sqrt(mean(x²) + eps) in every lane; `eps` holds the bits of a double."""
    f = s.f
    squares = f.slot(f.number(0.0, FLOATS))
    with s.lanes_of(size) as at:
        row = f.load(FLOATS, x + at)
        squares.set(f.fma(row, row, squares.get()))
    mean = f.total(squares.get()) / size.to(F32)
    deviation = f.call("llvm.sqrt.f32", F32, mean + eps.bits(F64).to(F32))
    return (f.number(1.0, F32) / deviation).spread(LANES)


@operation("x x_apart size codes step apart", shared=False)
def round_row(s: Share) -> None:
    """codes = x in 255 steps of its largest entry, zero at 128; a copy for each thread.

    The same arithmetic as PackedLinear.several, so the codes are those of the row in a batch.
    """
    f, size, codes = s.f, s.size, s.own(s.codes)
    x = s.x + s.thread * s.x_apart
    # As numbers without sign the bits of floats are in order, and NaN is above all.
    largest = f.slot(f.number(SMALLEST, FLOATS).bits(INTS))
    with s.lanes_of(size) as at:
        largest.set(f.larger(f.load(INTS, x + at) & 0x7FFFFFFF, largest.get()))
    step = f.largest(largest.get()).bits(F32) / f.number(127.0, F32)
    f.store(step, s.own(s.step))
    steps = step.spread(LANES)
    with s.lanes_of(size) as at:
        level = f.load(FLOATS, x + at) / steps + 128.5
        f.store(truncated(f, level).to(I8), codes + at / 4)


# Products


@operation("weights codes step apart groups blocks scales sums bias out adds")
def product(s: Share) -> None:
    """out (+)= weights · codes, scaled, + bias: int8 weights, 64 outputs at a time.

    groups: fours of inputs; sums: minus the sum of each output's weights; bias: 0 for none;
    adds: 1 to add to what `out` holds. 4 registers of sums stay; weights pass by once.
    """
    f, groups, weights = s.f, s.groups, s.weights
    codes, step = s.own(s.codes), f.load(F32, s.own(s.step)).spread(LANES)
    with s.part_of(s.blocks) as block:
        sums = _block_sums(s, weights + block * groups * (4 * BLOCK), codes, groups)
        for part in range(BLOCK // LANES):
            at = block * (4 * BLOCK) + 4 * LANES * part
            centred = sums[part] + f.load(INTS, s.sums + at) * 128
            _finish(s, centred.to(F32) * f.load(FLOATS, s.scales + at) * step, at)


def _block_sums(s: Share, weights: Value, codes: Value, groups: Value) -> list[Value]:
    """Four vectors of int32 sums: of 64 outputs, over all inputs."""
    f = s.f
    sums = [f.slot(f.number(0, INTS)) for _ in range(BLOCK // LANES)]
    with f.loop(f.number(0), groups, 4) as group:
        for unrolled in range(4):
            four = f.load(I32, codes + group * 4, 4 * unrolled).spread(LANES)
            for part, total in enumerate(sums):
                at = 4 * BLOCK * unrolled + 4 * LANES * part
                signed = f.load(INTS, weights + group * (4 * BLOCK), at)
                total.set(dot(f, s.shape.wide, total.get(), four, signed))
    return [total.get() for total in sums]


@operation("weights codes step apart groups blocks scales sums bias out adds")
def product_int4(s: Share) -> None:
    """The same with 4-bit weights, as lfm2_mm.int4 has them. groups: of 32 inputs; sums: what codes
    around 128 add too much, as floats."""
    f, groups, weights, codes = s.f, s.groups, s.weights, s.own(s.codes)
    step = f.load(F32, s.own(s.step)).spread(LANES)
    parts = [4 * LANES * part for part in range(BLOCK // LANES)]
    with s.part_of(s.blocks) as block:
        first = block * (4 * BLOCK)
        totals = [f.slot(f.load(FLOATS, s.sums + first + part)) for part in parts]
        unit = weights + block * groups * UNIT
        with f.loop(f.number(0), groups) as group:
            here, row = unit + group * UNIT, codes + group * 32
            group_sums(f, s.shape.wide, here, [row], [totals], 0)
        for total, part in zip(totals, parts, strict=True):
            at = first + part
            _finish(s, total.get() * f.load(FLOATS, s.scales + at) * step, at)


def _finish(s: Share, y: Value, at: Value) -> None:
    """Add the bias and what was there, if asked; store 16 outputs."""
    f, bias = s.f, s.bias
    result = f.slot(y)
    with f.when(bias.compare("!=", 0)):
        result.set(result.get() + f.load(FLOATS, bias + at))
    with f.when(s.adds.compare("!=", 0)):
        result.set(result.get() + f.load(FLOATS, s.out + at))
    f.store(result.get(), s.out + at)


# Layers


@operation("gates size out")
def swiglu(s: Share) -> None:
    """out = silu(gate) · up, where `gates` holds the two after each other."""
    f, size = s.f, s.size
    with s.part_of(size / LANES) as number:
        at = number * (4 * LANES)
        gate = f.load(FLOATS, s.gates + at)
        up = f.load(FLOATS, s.gates + size * 4 + at)
        sigmoid_down = exponential(f, f.number(0.0, FLOATS) - gate) + 1.0
        f.store(gate / sigmoid_down * up, s.out + at)


@operation("gates size inputs position lead taps bias out")
def convolve(s: Share) -> None:
    """out = after · conv(before · x), with before, after, x in `gates`; remembers before · x.

    inputs: rows of `size` numbers by position, `lead` zeros first.
    """
    f, size, half = s.f, s.size, s.shape.half
    bytes_each = 2 if half else 4
    row = size * bytes_each
    window = s.inputs + f.load(I64, s.position) * row
    with s.part_of(size / LANES) as number:
        at, state_at = number * (4 * LANES), number * (bytes_each * LANES)
        before, after, x = (f.load(FLOATS, s.gates + size * (4 * i) + at) for i in range(3))
        now = write(f, half, before * x, window + s.lead * row + state_at)
        total = f.slot(now * f.load(FLOATS, s.taps + s.lead * size * 4 + at))
        with f.loop(f.number(0), s.lead) as tap:
            seen = read(f, half, window + tap * row + state_at)
            total.set(f.fma(seen, f.load(FLOATS, s.taps + tap * size * 4 + at), total.get()))
        with f.when(s.bias.compare("!=", 0)):
            total.set(total.get() + f.load(FLOATS, s.bias + at))
        f.store(after * total.get(), s.out + at)


@operation("qkv q_weight k_weight eps turns kv_heads keys values apart position scores room out")
def attend(s: Share) -> None:
    """One query position over all keys: `group` query heads of each key head together.

    qkv: queries, keys, values of this position; weights of their norms, 0 for none; turns: cosines
    and signed sines of the position, head_dim each; keys, values: (kv_heads, capacity, head_dim),
    `apart` bytes from head to head; scores: room for `group` rows of `room` bytes a key head.
    """
    f, shape = s.f, s.shape
    dim, group = shape.head_dim, shape.group
    bytes_each = 2 if shape.half else 4
    position = f.load(I64, s.position)
    with s.part_of(s.kv_heads) as head:
        queries = s.qkv + head * (4 * dim * group)
        key = s.qkv + (s.kv_heads * group + head) * (4 * dim)
        value = s.qkv + (s.kv_heads * (group + 1) + head) * (4 * dim)
        keys, values = s.keys + head * s.apart, s.values + head * s.apart
        scores = s.scores + head * s.room * group
        now = position * (bytes_each * dim)
        for part, turned in enumerate(_turned(s, key, s.k_weight)):
            write(f, shape.half, turned, keys + now + bytes_each * LANES * part)
        for part in range(dim // LANES):
            vector_of_value = f.load(FLOATS, value, 4 * LANES * part)
            write(f, shape.half, vector_of_value, values + now + bytes_each * LANES * part)
        inverse_root = dim**-0.5
        for number in range(group):
            query = queries + 4 * dim * number
            rows = [q * inverse_root for q in _turned(s, query, s.q_weight, kept=shape.half)]
            row = scores + s.room * number
            top = _score(s, rows, keys, position, row)
            _weigh(s, row, position, top)
        _mix(s, scores, values, position, s.out + head * (4 * dim * group))


def _turned(s: Share, row: Value, weight: Value, kept: bool = False) -> list[Value]:
    """A head's row, normalised where there is a weight, and turned to its position.

    kept: rounded to bfloat16, as it would be to be multiplied with keys of that kind.
    """
    f, dim = s.f, s.shape.head_dim
    parts = dim // LANES
    with f.when(weight.compare("!=", 0)):
        scale = _inverse_deviation(s, row, f.number(dim), s.eps)
        for part in range(parts):
            at = 4 * LANES * part
            f.store(f.load(FLOATS, row, at) * scale * f.load(FLOATS, weight, at), row, at)
    plain = [f.load(FLOATS, row, 4 * LANES * part) for part in range(parts)]
    cosines = [f.load(FLOATS, s.turns, 4 * LANES * part) for part in range(parts)]
    sines = [f.load(FLOATS, s.turns, 4 * (dim + LANES * part)) for part in range(parts)]
    turned = [
        f.fma(y, sine, x * cosine)
        for x, y, cosine, sine in zip(plain, _partners(s, plain), cosines, sines, strict=True)
    ]
    if not kept:
        return turned
    return [write(f, True, x, row + 4 * LANES * part) for part, x in enumerate(turned)]


def _partners(s: Share, plain: list[Value]) -> list[Value]:
    """The number that each one is turned with: half a head away, or (pairs) its neighbour."""
    if s.shape.pairs:
        return [x.lanes([lane ^ 1 for lane in range(LANES)]) for x in plain]
    half, count = s.shape.head_dim // 2, len(plain)
    partners = []
    for part in range(count):
        first, offset = divmod((LANES * part + half) % s.shape.head_dim, LANES)
        following = plain[(first + 1) % count]
        partners.append(plain[first].lanes(range(offset, offset + LANES), following))
    return partners


def _score(s: Share, query: list[Value], keys: Value, position: Value, out: Value) -> Value:
    """Products of a query with the keys of 0 to `position`, 16 at a time; the largest of them.

    Past the end the last key is repeated: it lies there, and changes no maximum.
    """
    f, shape = s.f, s.shape
    bytes_each = 2 if shape.half else 4
    top = f.slot(f.number(float("-inf"), FLOATS))
    with f.loop(f.number(0), position + 1, LANES) as first:
        rows = []
        for lane in range(LANES):
            here = first + lane
            at = here.compare("<", position).where(here, position) * (bytes_each * shape.head_dim)
            total = f.number(0.0, FLOATS)
            for part, q in enumerate(query):
                key = read(f, shape.half, keys + at + bytes_each * LANES * part)
                total = f.fma(q, key, total)
            rows.append(total)
        scores = sums_of(rows)
        f.store(scores, out + first * 4)
        top.set(f.larger(scores, top.get()))
    return f.largest(top.get())


def _weigh(s: Share, row: Value, position: Value, top: Value) -> None:
    """Scores of a row become weights that sum to 1; those past the end become 0."""
    f = s.f
    total = f.slot(f.number(0.0, FLOATS))
    numbers = f.vector_of(range(LANES))
    with f.loop(f.number(0), position + 1, LANES) as first:
        weight = exponential(f, f.load(FLOATS, row + first * 4) - top)
        real = (numbers + first.to(I32)).compare("<=", position.to(I32))
        weight = real.where(weight, 0.0)
        total.set(total.get() + weight)
        f.store(weight, row + first * 4)
    inverse = f.number(1.0, F32) / f.total(total.get())
    with f.loop(f.number(0), position + 1, LANES) as first:
        f.store(f.load(FLOATS, row + first * 4) * inverse, row + first * 4)


def _mix(s: Share, scores: Value, values: Value, position: Value, out: Value) -> None:
    """out (group, dim) = weights · values. At most 16 registers hold sums; a value is read once
    for all heads of the group that it serves."""
    f, shape = s.f, s.shape
    bytes_each = 2 if shape.half else 4
    parts = shape.head_dim // LANES
    together = max(1, min(parts, 16 // shape.group))
    for begin in range(0, parts, together):
        these = range(begin, min(begin + together, parts))
        sums = [[f.slot(f.number(0.0, FLOATS)) for _ in these] for _ in range(shape.group)]
        with f.loop(f.number(0), position + 1) as here:
            at = values + here * (bytes_each * shape.head_dim)
            row = [read(f, shape.half, at + bytes_each * LANES * part) for part in these]
            for number, totals in enumerate(sums):
                weight = f.load(F32, scores + s.room * number + here * 4).spread(LANES)
                for total, value in zip(totals, row, strict=True):
                    total.set(f.fma(weight, value, total.get()))
        for number, totals in enumerate(sums):
            for part, total in zip(these, totals, strict=True):
                f.store(total.get(), out, 4 * (shape.head_dim * number + LANES * part))


# The team


CONTROL = ("program", "count", "team_size", "threads", "yields", "ticket", *["_"] * 10,
           "arrived", *["_"] * 15, "turn", *["_"] * 15)  # fmt: skip  # a cache line each


def module(shape: Shape, table: Table = OPERATIONS) -> str:
    """All operations of a table, and `run`, which a team calls with the control numbers."""
    whole = ir.Module("step")
    bodies = []
    for name, operation in table.items():
        f = Function(whole, name, ("op", "thread", "threads"))
        f.ir.linkage = "internal"
        operation.body(Share(f, shape, operation.fields))
        f.finish()
        bodies.append(f)
    _run(whole, bodies)
    return str(whole)


def _run(whole: ir.Module, bodies: list[Function]) -> None:
    f = Function(whole, "run", ("control",))
    (control,) = f.arguments

    def named(name: str) -> Value:
        return control + 8 * CONTROL.index(name)

    thread = f.atomic_add(named("ticket"), 1)
    asked = f.load(I64, named("threads"))
    threads = f.slot(asked)
    team_size = f.load(I64, named("team_size"))
    with f.when(team_size.compare("!=", 0)):
        threads.set(f.call_address(team_size, I32).to(I64))
    count = threads.get()
    with f.loop(f.number(0), f.load(I64, named("count"))) as number:
        op = f.load(I64, f.load(I64, named("program")) + number * 8)
        which = f.load(I64, op)
        f.switch(which, [(body, (op, thread, count)) for body in bodies])
        with f.when(f.load(I64, op, 8).compare("!=", 0)):
            _barrier(f, named, count)
    f.finish()


def _barrier(f: Function, named: Callable[[str], Value], threads: Value) -> None:
    """Wait until all threads are here: the last to arrive starts the next turn."""
    turn = f.atomic_load(named("turn"))
    here = f.atomic_add(named("arrived"), 1) + 1
    last = here.compare("==", threads)
    with f.when(last):
        f.atomic_store(f.number(0), named("arrived"))
        f.atomic_store(turn + 1, named("turn"))
    spins = f.slot(f.number(0))
    yields = f.load(I64, named("yields"))
    with f.until(lambda: f.atomic_load(named("turn")).compare("!=", turn)):
        f.call("llvm.x86.sse2.pause", ir.VoidType())
        spins.set(spins.get() + 1)
        patience = spins.get().compare(">", SPINS)
        with f.when(patience), f.when(yields.compare("!=", 0)):
            f.call_address(yields, I32)
