"""A list of compiled operations over rows of numbers, run by a team. Knows no layers' order.

    program = Program(Shape(head_dim=64, group=2, half=True))
    x = program.row(1024)                       # shared by the team; fill x.values before `run`
    normed = program.norm(x, weight, eps)       # weight: float32 (1024,)
    y = program.linear(normed, packed_linear)   # rounds `normed` once, however often it is used
    program.linear(y, another, onto=x)          # x += another(y)
    program.run()                               # everything above, in one call

Rows are padded with zeros to whole lanes; sizes between operations are multiples of 16. A program
has one set of buffers: `run` it from one thread at a time.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lfm2_mm import step_ir
from lfm2_mm.compiled import Machine, give_way, openmp, run_team
from lfm2_mm.device import usable_cores
from lfm2_mm.step_ir import CONTROL, OPERATIONS, Shape, Table
from lfm2_mm.vector_ir import LANES

if TYPE_CHECKING:
    from lfm2_mm.linear import PackedLinear

SIMPLE = Shape(16, 1, False)  # for programs without attention and state
PADDING = 64  # numbers


class Row:
    """`size` float32, shared by the team or (own) a copy for each thread."""

    def __init__(self, size: int, copies: int = 1) -> None:
        width = -(-size // PADDING) * PADDING
        self.size = size
        self.memory = np.zeros((copies, width), np.float32)
        self.values = self.memory[0, :size]
        self.address = int(self.memory.ctypes.data)
        self.apart = self.memory.strides[0] if copies > 1 else 0


class Counter:
    """A whole number that operations read."""

    def __init__(self) -> None:
        self.values = np.zeros(1, np.int64)
        self.address = int(self.values.ctypes.data)


class Operation:
    """One operation of a program. Its fields may change between runs."""

    def __init__(self, name: str, fields: dict[str, int], table: Table = OPERATIONS) -> None:
        names = table[name].fields
        if set(names) != set(fields):
            raise ValueError(f"{name} takes {', '.join(names)}; given were {', '.join(fields)}")
        self._places = {field: 2 + i for i, field in enumerate(names)}
        self.record = np.zeros(2 + len(names), np.int64)
        self.record[:2] = table.kind(name), table[name].shared
        self.set(**fields)

    def set(self, **fields: int) -> None:
        for name, value in fields.items():
            self.record[self._places[name]] = value


class Program:
    """Operations in order, and the buffers between them."""

    def __init__(self, shape: Shape = SIMPLE, table: Table = OPERATIONS) -> None:
        self.shape, self.table = shape, table
        self.most_threads = usable_cores()
        self.position = Counter()  # of the row that a run computes
        self.lock = threading.Lock()  # to be held from filling the buffers to reading the result
        self._operations: list[Operation] = []
        self._table = np.zeros(0, np.int64)
        self._kept: list[Any] = [self.position]  # what the operations point at
        self._rounded: tuple[Row, dict[str, int]] | None = None
        self._control = np.zeros(len(CONTROL), np.int64)

    def row(self, size: int, own: bool = False) -> Row:
        """A buffer of `size` numbers; own: one for each thread."""
        return self.keep(Row(size, self.most_threads if own else 1))

    def counter(self) -> Counter:
        """A number that operations read, to be set before `run`."""
        made: Counter = self.keep(Counter())
        return made

    def keep(self, thing: Any) -> Any:
        """Hold on to what operations point at."""
        self._kept.append(thing)
        return thing

    def floats(self, tensor: Tensor | None) -> int:
        """The address of a parameter as float32, padded with zeros; 0 for None."""
        if tensor is None:
            return 0
        flat = tensor.detach().float().flatten()
        kept = self.row(len(flat))
        kept.values[:] = flat.numpy()
        return kept.address

    def add(self, name: str, **fields: int) -> Operation:
        """Any operation of the program's table."""
        operation = Operation(name, fields, self.table)
        self._operations.append(operation)
        self._rounded = None
        return operation

    @property
    def last(self) -> Operation:
        """The operation added last."""
        return self._operations[-1]

    def norm(self, x: Row, weight: Tensor, eps: float) -> Row:
        """Root-mean-square normalisation; each thread has a result of its own."""
        out = self.row(x.size, own=True)
        self.add("norm", x=x.address, weight=self.floats(weight), size=x.size,
                 eps=float_bits(eps), out=out.address, apart=out.apart)  # fmt: skip
        return out

    def linear(self, x: Row, linear: PackedLinear, onto: Row | None = None) -> Row:
        """linear(x), added to `onto` if that is given."""
        codes = self._codes(x)
        out = onto or self.row(linear.outputs)
        packed = linear.packed
        rounded = self._rounded
        self.add(linear.operation, weights=packed.address, **codes, groups=packed.groups,
                 blocks=packed.blocks, scales=self.floats(linear.scales), sums=packed.sums,
                 bias=self.floats(linear.bias), out=out.address, adds=int(onto is not None),
                 )  # fmt: skip
        self._rounded = rounded if onto is not x else None
        self.keep(linear)
        return out

    def _codes(self, x: Row) -> dict[str, int]:
        """`x` in steps of its largest number, as fields of a product."""
        if self._rounded is not None and self._rounded[0] is x:
            return self._rounded[1]
        width = -(-x.size // PADDING) * PADDING
        apart = width + PADDING  # the step lies behind the codes
        memory = self.keep(np.full((self.most_threads, apart), 128, np.uint8))
        fields = {"codes": int(memory.ctypes.data), "step": int(memory.ctypes.data) + width,
                  "apart": apart}  # fmt: skip
        self.add("round_row", x=x.address, x_apart=x.apart,
                 size=-(-x.size // LANES) * LANES, **fields)  # fmt: skip
        self._rounded = x, fields
        return fields

    def run(self) -> None:
        """Everything once, with as many threads as torch has. The caller holds `lock`."""
        threads = max(1, min(torch.get_num_threads(), self.most_threads))
        if len(self._table) != len(self._operations):
            addresses = [int(o.record.ctypes.data) for o in self._operations]
            self._table = np.array(addresses, np.int64)
        team = openmp()
        team_size = team.team_size if team and threads > 1 else 0
        start = (self._table.ctypes.data, len(self._table), team_size, threads, give_way(), 0)
        control = self._control
        control[: len(start)] = start
        run_team(machine(self.shape, self.table).address("run"), int(control.ctypes.data), threads)


class RowProduct:
    """One row through one packed matrix."""

    def __init__(self, linear: PackedLinear) -> None:
        self._program = program = Program()
        self._outputs, self._padded = linear.outputs, linear.packed.blocks * step_ir.BLOCK
        self._x = program.row(linear.inputs)
        program.linear(self._x, linear)
        self._product = program.last

    def __call__(self, row: Tensor) -> Tensor:
        """(1, inputs) -> (1, outputs) float32."""
        out = torch.empty(1, self._padded)
        with self._program.lock:
            self._x.values[:] = row.detach().float().reshape(-1).numpy()
            self._product.set(out=out.data_ptr())
            self._program.run()
        return out[:, : self._outputs]


@functools.cache
def machine(shape: Shape, table: Table = OPERATIONS) -> Machine:
    return Machine(step_ir.module(shape, table))


def float_bits(value: float) -> int:
    """A double as the number of its bits."""
    return int(np.float64(value).view(np.int64))
