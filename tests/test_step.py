"""Each compiled operation against plain torch, over awkward sizes, threads and register widths."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm import program as programs
from lfm2_mm.compiled import register_width
from lfm2_mm.linear import Int8Linear
from lfm2_mm.program import SIMPLE, Operation, Program, float_bits
from lfm2_mm.step_ir import Shape

pytestmark = pytest.mark.skipif(
    register_width() is None, reason="the processor has no byte product"
)
WIDTHS = [True, False] if register_width() == 64 else [False]
# The same sums in another order, and a polynomial for e to the x.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many run a program, whatever the machine has."""
    monkeypatch.setattr(programs, "usable_cores", lambda: request.param)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return int(request.param)


def run(program: Program) -> None:
    with program.lock:
        program.run()


@pytest.mark.parametrize("size", [16, 48, 64, 1024])
def test_norm(size: int, threads: int) -> None:
    program, x, weight = Program(), noise(size), noise(size, seed=1)
    row = program.row(size)
    out = program.norm(row, weight, 1e-3)
    row.values[:] = x
    run(program)
    expected = F.rms_norm(x, (size,), weight, 1e-3)
    for copy in out.memory:  # each thread has one
        torch.testing.assert_close(torch.from_numpy(copy[:size]), expected, **CLOSE)


class TestLinear:
    @pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 5), (65, 33), (300, 130)])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("wide", WIDTHS)
    def test_bits_are_those_of_the_row_in_a_batch(
        self, inputs: int, outputs: int, bias: bool, wide: bool, threads: int
    ) -> None:
        linear = Int8Linear(noise(outputs, inputs), noise(outputs, seed=1) if bias else None)
        x = noise(inputs, seed=2) * 7
        program = Program(replace(SIMPLE, wide=wide))
        row = program.row(inputs)
        out = program.linear(row, linear)
        row.values[:] = x
        run(program)
        assert np.array_equal(out.values, linear.several(x[None])[0])
        assert not out.memory[0, outputs:].any()

    def test_products_are_whole_numbers(self, threads: int) -> None:
        """The largest levels of both kinds, against plain integer arithmetic."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randint(-127, 128, (70, 500), generator=generator).float()
        x = torch.randint(-127, 128, (500,), generator=generator).float()
        weight[:, 0], x[0] = 127, -127
        program = Program()
        row = program.row(500)
        out = program.linear(row, Int8Linear(weight))
        row.values[:] = x
        run(program)
        assert out.values.round().tolist() == (weight @ x).tolist()

    def test_onto_a_row_and_several_from_one(self, threads: int) -> None:
        first, second = Int8Linear(noise(64, 64)), Int8Linear(noise(64, 64, seed=1), noise(64))
        program = Program()
        x, y = program.row(64), program.row(64)
        a = program.linear(x, first)
        program.linear(x, second, onto=y)
        program.linear(a, second, onto=y)
        program.linear(y, first, onto=y)
        x.values[:], y.values[:] = noise(64, seed=3), 1.0
        run(program)
        given = noise(1, 64, seed=3)
        one = first.several(given)
        two = 1 + second.several(given) + second.several(one)
        expected = two + first.several(two)
        torch.testing.assert_close(torch.from_numpy(out_of(y)), expected[0], **CLOSE)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_no_number_is_seen(self, bad: float) -> None:
        linear, x = Int8Linear(noise(24, 64)), noise(1, 64)
        x[0, 3] = bad
        assert not linear(x).isfinite().any()
        assert linear(noise(1, 64)).isfinite().all()  # and leaves nothing behind

    def test_zeros_and_outliers(self) -> None:
        linear = Int8Linear(noise(24, 64), torch.arange(24.0))
        assert torch.equal(linear(torch.zeros(1, 64))[0], torch.arange(24.0))
        x = noise(1, 64)
        x[0, 5] = 1e20
        assert torch.equal(linear(x), linear.several(x))


def out_of(row: programs.Row) -> np.ndarray:
    return row.values.copy()


@pytest.mark.parametrize("size", [16, 48, 1040])
def test_swiglu(size: int, threads: int) -> None:
    program, x = Program(), noise(2 * size) * 20
    x[:4] = torch.tensor([-1e4, -90.0, 90.0, 1e4])
    gates, out = program.row(2 * size), program.row(size)
    program.add("swiglu", gates=gates.address, size=size, out=out.address)
    gates.values[:] = x
    run(program)
    expected = F.silu(x[:size]) * x[size:]
    torch.testing.assert_close(torch.from_numpy(out.values), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_convolution_goes_on_from_what_it_remembers(
    kernel: int, half: bool, bias: bool, threads: int
) -> None:
    size, length = 48, 7
    program = Program(replace(SIMPLE, half=half))
    taps, added = noise(kernel, size), noise(size, seed=1) if bias else None
    dtype = torch.bfloat16 if half else torch.float32
    inputs = torch.zeros(1, kernel - 1 + length, size, dtype=dtype)
    gates, out = program.row(3 * size), program.row(size)
    program.add("convolve", gates=gates.address, size=size, inputs=inputs.data_ptr(),
                position=program.position.address, lead=kernel - 1, taps=program.floats(taps),
                bias=program.floats(added), out=out.address)  # fmt: skip
    seen = torch.zeros(kernel - 1 + length, size, dtype=dtype)
    for position in range(length):
        before, after, x = noise(3, size, seed=position)
        gates.values[:] = torch.cat([before, after, x])
        program.position.values[0] = position
        run(program)
        seen[kernel - 1 + position] = before * x
        expected = (seen[position : position + kernel].float() * taps).sum(0)
        expected = after * (expected if added is None else expected + added)
        torch.testing.assert_close(torch.from_numpy(out.values), expected, **CLOSE)
    assert torch.equal(inputs[0], seen)


class TestAttention:
    """Against softmax(q kᵀ / √dim) v, written out."""

    @pytest.mark.parametrize(
        ("dim", "kv_heads", "group", "half", "pairs"),
        [
            (16, 3, 1, False, False),
            (16, 1, 2, True, True),
            (32, 2, 4, False, True),
            (48, 2, 3, False, False),
            (64, 3, 2, True, False),
            (64, 1, 8, False, False),
            (128, 2, 4, True, False),
        ],
    )
    def test_step_by_step(
        self, dim: int, kv_heads: int, group: int, half: bool, pairs: bool, threads: int
    ) -> None:
        length, capacity = 35, 36  # two sixteens and a rest, and nearly no room behind it
        dtype = torch.bfloat16 if half else torch.float32
        keys = torch.full((kv_heads, capacity, dim), float("nan"), dtype=dtype)
        values = keys.clone()
        seen: list[tuple[Tensor, Tensor]] = []
        program = Program(Shape(dim, group, half, pairs=pairs))
        weights = noise(2, dim, seed=99)
        operation, qkv, turns, out = attention(program, kv_heads, keys, values, weights)
        for position in range(length):
            given = noise(kv_heads * (group + 2), dim, seed=position) * 3
            angles = 0.3 * position / torch.arange(1, dim // 2 + 1)
            qkv.values[:] = given.flatten()
            turns.values[:] = tables(angles, pairs)
            program.position.values[0] = position
            run(program)
            heads = kv_heads * group
            q = turned(F.rms_norm(given[:heads], (dim,), weights[0], 1e-5), angles, pairs)
            k = turned(F.rms_norm(given[heads : heads + kv_heads], (dim,), weights[1], 1e-5),
                       angles, pairs)  # fmt: skip
            seen.append((k.to(dtype).float(), given[heads + kv_heads :].to(dtype).float()))
            expected = attended(q.to(dtype).float(), seen, group)
            # With bfloat16, a key or query between two of its numbers may round the other way.
            close = {"rtol": 0.02, "atol": 0.02} if half else {"rtol": 2e-4, "atol": 2e-5}
            torch.testing.assert_close(
                torch.from_numpy(out.values).view(heads, dim), expected, **close
            )
        assert keys[:, length:].isnan().all() and values[:, length:].isnan().all()
        torch.testing.assert_close(
            keys[:, :length].float(), torch.stack([k for k, _ in seen], 1),
            **({"rtol": 0.01, "atol": 0.01} if half else CLOSE),
        )  # fmt: skip
        assert torch.equal(values[:, :length].float(), torch.stack([v for _, v in seen], 1))
        assert operation.record[0] >= 0

    def test_without_normalisation_of_heads(self, threads: int) -> None:
        keys, values = torch.zeros(1, 4, 16), torch.zeros(1, 4, 16)
        program = Program(Shape(16, 1, False))
        _, qkv, turns, out = attention(program, 1, keys, values, None)
        turns.values[:] = tables(torch.zeros(8), False)
        given = noise(3, 16)
        qkv.values[:] = given.flatten()
        run(program)
        torch.testing.assert_close(torch.from_numpy(out.values), given[2], **CLOSE)
        assert torch.equal(keys[0, 0], given[1])


def attention(
    program: Program, kv_heads: int, keys: Tensor, values: Tensor, weights: Tensor | None
) -> tuple[Operation, programs.Row, programs.Row, programs.Row]:
    dim, group = program.shape.head_dim, program.shape.group
    heads, capacity = kv_heads * group, keys.shape[1]
    qkv, turns = program.row((heads + 2 * kv_heads) * dim), program.row(2 * dim)
    out, room = program.row(heads * dim), -(-capacity // 16) * 64
    scores = program.row(heads * room // 4)
    q, k = (None, None) if weights is None else weights
    operation = program.add(
        "attend", qkv=qkv.address, q_weight=program.floats(q), k_weight=program.floats(k),
        eps=float_bits(1e-5), turns=turns.address, kv_heads=kv_heads, keys=keys.data_ptr(),
        values=values.data_ptr(), apart=keys.stride(0) * keys.element_size(),
        position=program.position.address, scores=scores.address, room=room, out=out.address,
    )  # fmt: skip
    return operation, qkv, turns, out


def tables(angles: Tensor, pairs: bool) -> Tensor:
    cosines, sines = angles.cos(), angles.sin()
    if pairs:
        signed = torch.stack([-sines, sines], 1).flatten()
        return torch.cat([cosines.repeat_interleave(2), signed])
    return torch.cat([cosines, cosines, -sines, sines])


def turned(x: Tensor, angles: Tensor, pairs: bool) -> Tensor:
    """Complex multiplication, of neighbours or of the two halves."""
    first, second = (x[:, ::2], x[:, 1::2]) if pairs else x.chunk(2, 1)
    product = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    if pairs:
        return torch.view_as_real(product).flatten(1)
    return torch.cat([product.real, product.imag], 1)


def attended(q: Tensor, seen: list[tuple[Tensor, Tensor]], group: int) -> Tensor:
    rows = []
    for head, query in enumerate(q):
        keys = torch.stack([k[head // group] for k, _ in seen])
        values = torch.stack([v[head // group] for _, v in seen])
        rows.append(torch.softmax(keys @ query / math.sqrt(len(query)), 0) @ values)
    return torch.stack(rows)


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="swiglu takes gates, size, out"):
        Program().add("swiglu", gates=1, size=2)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output is computed by one thread, whichever that is."""
    monkeypatch.setattr(programs, "usable_cores", lambda: 7)
    program, linear = Program(), Int8Linear(noise(1000, 96))
    x = program.row(96)
    out = program.linear(program.norm(x, noise(96), 1e-5), linear)
    x.values[:] = noise(96, seed=2)
    found = []
    for count in (1, 2, 3, 7, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        run(program)
        found.append(out.values.tolist())
    assert all(one == found[0] for one in found)
