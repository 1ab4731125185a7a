"""Writes functions for LLVM as if they were arithmetic. Knows numbers and loops, no models.

A `Value` is a number or a vector in a register; `+ - * / & << >>` on it write the instruction.
What changes in a loop lives in a `Slot`, which LLVM turns into a register again. Addresses are
plain 64-bit numbers until they are read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
FLOATING = (ir.HalfType, ir.FloatType, ir.DoubleType)
POINTER = ir.PointerType()


def vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


class Value:
    """A number or vector; arithmetic with another one, or with a Python number in every lane."""

    def __init__(self, code: Function, value: ir.Value) -> None:
        self.code, self.ir = code, value

    @property
    def lane(self) -> ir.Type:
        kind = self.ir.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def _with(self, name: str, other: Value | float) -> Value:
        prefix = "f" if isinstance(self.lane, FLOATING) else ""
        write = getattr(self.code.builder, {"div": "sdiv"}.get(name, name) if not prefix
                        else prefix + name)  # fmt: skip
        return Value(self.code, write(self.ir, self.code.like(other, self)))

    def __add__(self, other: Value | float) -> Value:
        return self._with("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._with("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._with("div", other)

    def __and__(self, other: Value | int) -> Value:
        return Value(self.code, self.code.builder.and_(self.ir, self.code.like(other, self)))

    def __rshift__(self, other: int) -> Value:
        return Value(self.code, self.code.builder.lshr(self.ir, self.code.like(other, self)))

    def __lshift__(self, other: int) -> Value:
        return Value(self.code, self.code.builder.shl(self.ir, self.code.like(other, self)))

    def compare(self, sign: str, other: Value | float) -> Value:
        """Signed comparison, or ordered where the lanes are floats."""
        floats = isinstance(self.lane, FLOATING)
        write = self.code.builder.fcmp_ordered if floats else self.code.builder.icmp_signed
        return Value(self.code, write(sign, self.ir, self.code.like(other, self)))

    def is_nan(self) -> Value:
        return Value(self.code, self.code.builder.fcmp_unordered("uno", self.ir, self.ir))

    def where(self, yes: Value, no: Value | float) -> Value:
        """Lane by lane: `yes` where this condition holds."""
        return Value(self.code, self.code.builder.select(self.ir, yes.ir, self.code.like(no, yes)))

    def to(self, kind: ir.Type) -> Value:
        """Converted: floats round to nearest even, numbers of more bits are cut."""
        return self.code.convert(self, kind)

    def bits(self, kind: ir.Type) -> Value:
        """The same bits, read as another type."""
        return Value(self.code, self.code.builder.bitcast(self.ir, kind))

    def spread(self, lanes: int) -> Value:
        """This number in every lane."""
        builder, kind = self.code.builder, vector(self.ir.type, lanes)
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), self.ir, I32(0))
        zeros = ir.Constant(vector(I32, lanes), [0] * lanes)
        return Value(self.code, builder.shuffle_vector(one, one, zeros))

    def lanes(self, which: Sequence[int], other: Value | None = None) -> Value:
        """A vector of the lanes `which`, those of `other` counted on."""
        mask = ir.Constant(vector(I32, len(which)), list(which))
        second = self.ir if other is None else other.ir
        return Value(self.code, self.code.builder.shuffle_vector(self.ir, second, mask))


class Slot:
    """A value that changes."""

    def __init__(self, code: Function, start: Value) -> None:
        self._code = code
        with code.builder.goto_entry_block():
            self._room = code.builder.alloca(start.ir.type)
        self.set(start)

    def get(self) -> Value:
        builder = self._code.builder
        return Value(self._code, builder.load(self._room, typ=self._room.allocated_type))

    def set(self, value: Value) -> None:
        self._code.builder.store(value.ir, self._room)


class Function:
    """A function of 64-bit numbers that is being written."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[str]) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        self.ir = ir.Function(module, kind, name)
        self.module = module
        self.builder = ir.IRBuilder(self.ir.append_basic_block("entry"))
        self.arguments = [Value(self, argument) for argument in self.ir.args]

    def finish(self) -> None:
        self.builder.ret_void()

    # Numbers

    def number(self, value: float, kind: ir.Type = I64) -> Value:
        if isinstance(kind, ir.VectorType):
            return Value(self, ir.Constant(kind, [value] * kind.count))
        return Value(self, ir.Constant(kind, value))

    def vector_of(self, numbers: Sequence[int]) -> Value:
        kind = vector(I32, len(numbers))
        return Value(self, ir.Constant(kind, list(numbers)))

    def like(self, other: Value | float, model: Value) -> ir.Value:
        """`other` in the type of `model`; a number goes into every lane."""
        if not isinstance(other, Value):
            return self.number(other, model.ir.type).ir
        wide = isinstance(model.ir.type, ir.VectorType)
        narrow = not isinstance(other.ir.type, ir.VectorType)
        return other.spread(model.ir.type.count).ir if wide and narrow else other.ir

    def convert(self, value: Value, kind: ir.Type) -> Value:
        of = value.ir.type
        to = vector(kind, of.count) if isinstance(of, ir.VectorType) else kind
        if isinstance(kind, FLOATING) and isinstance(value.lane, FLOATING):
            grows = FLOATING.index(type(kind)) > FLOATING.index(type(value.lane))
            write = self.builder.fpext if grows else self.builder.fptrunc
        elif isinstance(kind, FLOATING):
            write = self.builder.sitofp
        elif isinstance(value.lane, FLOATING):
            write = self.builder.fptosi
        else:
            write = self.builder.zext if kind.width > value.lane.width else self.builder.trunc
        return Value(self, write(value.ir, to))

    def call(self, name: str, kind: ir.Type, *arguments: Value) -> Value:
        """A function of LLVM or the C library, declared when it is first called."""
        function = self.module.globals.get(name)
        if function is None:
            taken = [argument.ir.type for argument in arguments]
            function = ir.Function(self.module, ir.FunctionType(kind, taken), name)
        return Value(self, self.builder.call(function, [argument.ir for argument in arguments]))

    def call_address(self, address: Value, kind: ir.Type) -> Value:
        """The function without arguments that lies at `address`."""
        function = self.builder.inttoptr(address.ir, ir.FunctionType(kind, []).as_pointer())
        return Value(self, self.builder.call(function, []))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once; a number stands for one in every lane."""
        a, b = (Value(self, self.like(x, c)) for x in (a, b))
        return self.call(f"llvm.fma.{_suffix(c.ir.type)}", c.ir.type, a, b, c)

    def larger(self, a: Value, b: Value) -> Value:
        """Lane by lane; of floats `a` where it is NaN."""
        if not isinstance(a.lane, FLOATING):
            return a.compare(">", b).where(a, b)
        return Value(self, self.builder.fcmp_unordered(">", a.ir, b.ir)).where(a, b)

    def total(self, value: Value) -> Value:
        """The sum of a vector's lanes, by halves."""
        lanes = value.ir.type.count
        while lanes > 1:
            lanes //= 2
            value = value.lanes(range(lanes)) + value.lanes(range(lanes, 2 * lanes))
        return Value(self, self.builder.extract_element(value.ir, I32(0)))

    def largest(self, value: Value) -> Value:
        lanes = value.ir.type.count
        while lanes > 1:
            lanes //= 2
            value = self.larger(value.lanes(range(lanes)), value.lanes(range(lanes, 2 * lanes)))
        return Value(self, self.builder.extract_element(value.ir, I32(0)))

    # Memory

    def pointer(self, address: Value, offset: int = 0) -> ir.Value:
        whole = address if not offset else address + offset
        return self.builder.inttoptr(whole.ir, POINTER)

    def load(self, kind: ir.Type, address: Value, offset: int = 0) -> Value:
        """What lies `offset` bytes behind `address`, wherever that is."""
        return Value(self, self.builder.load(self.pointer(address, offset), align=1, typ=kind))

    def store(self, value: Value, address: Value, offset: int = 0) -> None:
        self.builder.store(value.ir, self.pointer(address, offset), align=1)

    def atomic_load(self, address: Value) -> Value:
        return Value(self, self.builder.load_atomic(self.pointer(address), "acquire", 8, typ=I64))

    def atomic_store(self, value: Value, address: Value) -> None:
        self.builder.atomic_rmw("xchg", self.pointer(address), value.ir, "acq_rel")

    def atomic_add(self, address: Value, number: int) -> Value:
        """Add, and get what was there before."""
        one = self.number(number).ir
        return Value(self, self.builder.atomic_rmw("add", self.pointer(address), one, "acq_rel"))

    # Control

    def slot(self, start: Value) -> Slot:
        return Slot(self, start)

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int = 1) -> Iterator[Value]:
        """The body, for start, start + step, … while below `stop`."""
        builder, place = self.builder, self.slot(start)
        check, body, after = (self.ir.append_basic_block(n) for n in ("check", "body", "after"))
        builder.branch(check)
        builder.position_at_end(check)
        here = place.get()
        builder.cbranch(here.compare("<", stop).ir, body, after)
        builder.position_at_end(body)
        yield here
        place.set(here + step)
        builder.branch(check)
        builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.ir):
            yield

    @contextmanager
    def until(self, done: Callable[[], Value]) -> Iterator[None]:
        """The body again and again while not `done`, which is looked at before each time."""
        builder = self.builder
        check, body, after = (self.ir.append_basic_block(n) for n in ("check", "body", "after"))
        builder.branch(check)
        builder.position_at_end(check)
        builder.cbranch(done().ir, after, body)
        builder.position_at_end(body)
        yield
        builder.branch(check)
        builder.position_at_end(after)

    def switch(self, which: Value, cases: Sequence[tuple[Function, Sequence[Value]]]) -> None:
        """Call the function whose number is `which`."""
        builder = self.builder
        after = self.ir.append_basic_block("after")
        choice = builder.switch(which.ir, after)
        for number, (function, arguments) in enumerate(cases):
            block = self.ir.append_basic_block(function.ir.name)
            choice.add_case(I64(number), block)
            builder.position_at_end(block)
            builder.call(function.ir, [argument.ir for argument in arguments])
            builder.branch(after)
        builder.position_at_end(after)


def _suffix(kind: ir.Type) -> str:
    """How LLVM's names of functions write a type."""
    names = {str(F32): "f32", str(I32): "i32"}
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{names[str(kind.element)]}"
    return names[str(kind)]
