"""What lies between the products of many rows, for LLVM: norms, activations, rounding to codes.

Each function takes one address, that of its `CONTROL` numbers and fields, and is called by all
threads of a team at once; they take rows by turns, `TOGETHER` at a time. Numbers in memory, no
tensors. A row stays in the processor's nearest memory from its first look to its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir

from lfm2_mm.emit import F32, F64, I8, I64, Function, Value
from lfm2_mm.vector_ir import FLOATS, INTS, LANES

TOGETHER = 8  # rows
SMALLEST = 1e-30  # as lfm2_mm.linear has it
CONTROL = ("next", "ticket", "rows")
# 2 to the r for -1/2..1/2, highest power first; largest relative error 7.5e-8 and 7.5e-5
FINE = (0.0013276472, 0.0096755419, 0.0555071309, 0.2402212024, 0.6931469440, 1.0000001192)
COARSE = (0.0551716685, 0.2426111400, 0.6932609677, 0.9999280572)
ROUNDING = 12_582_912.0  # 1.5 * 2^23: added to a small number it leaves its whole part lowest


def power_of_two(f: Function, x: Value, terms: tuple[float, ...]) -> Value:
    """2 to the x for x below 127; below -126 it is 1e-38 rather than less."""
    x = larger(f, x, f.number(-126.0, FLOATS))
    whole = x + ROUNDING
    rest = x - (whole - ROUNDING)
    y = f.number(terms[0], FLOATS)
    for term in terms[1:]:
        y = f.fma(y, rest, f.number(term, FLOATS))
    return (y.bits(INTS) + (whole.bits(INTS) << 23)).bits(FLOATS)


def larger(f: Function, a: Value, b: Value) -> Value:
    """In one instruction; `b` where one of the two is NaN."""
    return a.compare(">", b).where(a, b)


def magnitude(x: Value) -> Value:
    return (x.bits(INTS) & 0x7FFFFFFF).bits(FLOATS)


class Pass:
    """One function over rows of `size` floats: its fields by name, its row and its scratch."""

    def __init__(self, module: ir.Module, name: str, fields: str) -> None:
        self.f = Function(module, name, ("control",))
        self.fields = (*CONTROL, *fields.split())
        self._loaded = {n: self.f.load(I64, self.place(n)) for n in self.fields[len(CONTROL) - 1 :]}
        self.here: tuple[Value, Value]  # a product's row and its step, while one is worked on

    def __getattr__(self, name: str) -> Value:
        return self._loaded[name]

    def place(self, name: str) -> Value:
        """The address of a field."""
        return self.f.arguments[0] + 8 * self.fields.index(name)

    def number(self, name: str, lanes: int = LANES) -> Value:
        """A field that holds the bits of a double, as so many floats."""
        value: Value = getattr(self, name)
        return value.bits(F64).to(F32).spread(lanes)

    @contextmanager
    def each_row(self, together: int = TOGETHER) -> Iterator[Value]:
        """The numbers of this thread's rows, or whatever else there are `rows` of."""
        f = self.f
        first = f.slot(f.atomic_add(self.place("next"), together))
        rows = self.rows
        with f.until(lambda: first.get().compare(">=", rows)):
            end = first.get() + together
            with f.loop(first.get(), end.compare("<", rows).where(end, rows)) as row:
                yield row
            first.set(f.atomic_add(self.place("next"), together))

    @contextmanager
    def lanes(self, size: Value) -> Iterator[Value]:
        """Offsets of 16 floats each, in bytes."""
        with self.f.loop(self.f.number(0), size * 4, 4 * LANES) as at:
            yield at

    def scaled(self, product: Value, step: Value, at: Value) -> Value:
        """16 numbers of a product: scaled by the row's step, with the bias if there is one."""
        f, bias = self.f, self.bias
        y = f.load(FLOATS, product + at) * step
        result = f.slot(y)
        with f.when(bias.compare("!=", 0)):
            result.set(y + f.load(FLOATS, bias + at))
        return result.get()

    def step_of(self, row: Value) -> Value:
        return self.f.load(F32, self.steps + row * 4).spread(LANES)

    def round(self, source: Value, row: Value, size: Value, top: Value) -> None:
        """`size` floats at `source` as codes around 128 in steps of `top` / 127, and the step."""
        f = self.f
        largest = f.largest(top)
        step = largest / f.number(127.0, F32)
        f.store(step, self.out_steps + row * 4)
        inverse = (f.number(127.0, F32) / largest).spread(LANES)
        codes = self.codes + row * size
        half = f.number(128.5, FLOATS)
        with self.lanes(size) as at:
            level = f.fma(f.load(FLOATS, source + at), inverse, half)
            whole = Value(f, f.builder.fptosi(level.ir, INTS))
            f.store(whole.to(I8), codes + at / 4)


PASSES: dict[str, tuple[str, Callable[[Pass], None]]] = {}


def a_pass(fields: str) -> Callable[[Callable[[Pass], None]], Callable[[Pass], None]]:
    """Register a function's body under its name, with its fields in order."""

    def register(body: Callable[[Pass], None]) -> Callable[[Pass], None]:
        PASSES[body.__name__] = fields, body
        return body

    return register


def module() -> str:
    """All passes as one module's text."""
    whole = ir.Module("rows")
    for name, (fields, body) in PASSES.items():
        p = Pass(whole, name, fields)
        body(p)
        p.f.finish()
    return str(whole)


@a_pass("x size product steps bias centred eps weight shift scratch out codes out_steps")
def norm(p: Pass) -> None:
    """x += product · step + bias, if there is a product; norm; codes, or floats into `out`.

    centred: 1 for a layer norm, 0 for a norm by the root of the mean square; shift 0: none.
    scratch: a row a thread.
    """
    f = p.f
    own = p.scratch + f.atomic_add(p.place("ticket"), 1) * (p.size * 4)
    size, eps, out = p.size, p.number("eps"), p.out
    with p.each_row() as row:
        x = p.x + row * (size * 4)
        with f.when(p.product.compare("!=", 0)):
            product, step = p.product + row * (size * 4), p.step_of(row)
            with p.lanes(size) as at:
                f.store(f.load(FLOATS, x + at) + p.scaled(product, step, at), x + at)
        mean, inverse = _moments(p, x, size, eps)
        target = out.compare("!=", 0).where(out + row * (size * 4), own)
        top = f.slot(f.number(SMALLEST, FLOATS))
        shift = p.shift
        with p.lanes(size) as at:
            y = (f.load(FLOATS, x + at) - mean) * inverse * f.load(FLOATS, p.weight + at)
            shifted = f.slot(y)
            with f.when(shift.compare("!=", 0)):
                shifted.set(y + f.load(FLOATS, shift + at))
            f.store(shifted.get(), target + at)
            top.set(larger(f, magnitude(shifted.get()), top.get()))
        with f.when(p.codes.compare("!=", 0)):
            p.round(target, row, size, top.get())


def _moments(p: Pass, x: Value, size: Value, eps: Value) -> tuple[Value, Value]:
    """The mean, or 0 where the norm is not centred, and 1 / sqrt(variance + eps)."""
    f, count = p.f, size.to(F32)
    mean = f.slot(f.number(0.0, FLOATS))
    with f.when(p.centred.compare("!=", 0)):
        total = f.slot(f.number(0.0, FLOATS))
        with p.lanes(size) as at:
            total.set(total.get() + f.load(FLOATS, x + at))
        mean.set((f.total(total.get()) / count).spread(LANES))
    squares = f.slot(f.number(0.0, FLOATS))
    with p.lanes(size) as at:
        y = f.load(FLOATS, x + at) - mean.get()
        squares.set(f.fma(y, y, squares.get()))
    variance = (f.total(squares.get()) / count).spread(LANES) + eps
    root = f.call("llvm.sqrt.v16f32", FLOATS, variance)
    return mean.get(), f.number(1.0, FLOATS) / root


@a_pass("product size steps bias codes out_steps")
def gelu(p: Pass) -> None:
    """Codes of gelu(product · step + bias), by tanh as transformers' gelu_pytorch_tanh.

    x (1 + tanh(u / 2)) / 2 is x / (1 + e to the -u), u = sqrt(8 / pi) (x + 0.044715 x³).
    """
    _activation(p, p.size, lambda x, at: x / (_gelu_power(p.f, x) + 1.0))


def _gelu_power(f: Function, x: Value) -> Value:
    """2 to the -u / ln 2, never infinite."""
    u = f.fma(x * x, f.number(-0.10294324, FLOATS), f.number(-2.3022082, FLOATS)) * x
    return power_of_two(f, _at_most(f, u, 126.0), FINE)


@a_pass("product size steps bias codes out_steps")
def swiglu(p: Pass) -> None:
    """Codes of silu(gate) · up; a row of the product holds `size` gates and then as many ups."""
    f = p.f
    width = p.size * 4

    def mixed(gate: Value, at: Value) -> Value:
        down = power_of_two(f, _at_most(f, gate * -1.4426950408889634, 126.0), FINE) + 1.0
        row, step = p.here
        return gate / down * p.scaled(row, step, at + width)

    _activation(p, p.size * 2, mixed)


@a_pass("product size codes out_steps")
def round_rows(p: Pass) -> None:
    """Codes of the rows as they are."""
    f, size = p.f, p.size
    with p.each_row() as row:
        x = p.product + row * (size * 4)
        top = f.slot(f.number(SMALLEST, FLOATS))
        with p.lanes(size) as at:
            top.set(larger(f, magnitude(f.load(FLOATS, x + at)), top.get()))
        p.round(x, row, size, top.get())


def _at_most(f: Function, x: Value, most: float) -> Value:
    return x.compare("<", most).where(x, most)


def _activation(p: Pass, whole: Value, of: Callable[[Value, Value], Value]) -> None:
    """Codes of `of` each number of a product whose rows have `whole` numbers, and its place."""
    f, size = p.f, p.size
    with p.each_row() as row:
        product, step = p.product + row * (whole * 4), p.step_of(row)
        p.here = product, step
        top = f.slot(f.number(SMALLEST, FLOATS))
        with p.lanes(size) as at:
            y = of(p.scaled(product, step, at), at)
            f.store(y, product + at)
            top.set(larger(f, magnitude(y), top.get()))
        p.round(product, row, size, top.get())
