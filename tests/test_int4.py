"""4-bit weights: how near they are, that they lie as they are read, and rows on their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lfm2_mm import int4, linear
from lfm2_mm import program as programs
from lfm2_mm.compiled import register_width
from lfm2_mm.device import choose
from lfm2_mm.errors import BadInput
from lfm2_mm.int4 import GROUP, round_groups, unpacked
from lfm2_mm.linear import Int4Linear, Int8Linear
from lfm2_mm.program import SIMPLE, Program

SIZES = [(1, 1), (3, 5), (64, 32), (65, 33), (130, 300), (200, 17), (1024, 96)]  # outputs, inputs
here = pytest.mark.skipif(register_width() is None, reason="the processor has no byte product")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(layer: Int4Linear) -> Tensor:
    """What the layer multiplies with, (outputs, inputs)."""
    whole = unpacked(layer.packed, 0, layer.packed.blocks)
    return whole[: layer.outputs] * layer.scales[:, None]


@pytest.fixture(params=["as this processor", "without byte products"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways through a matrix."""
    if request.param != "as this processor":
        monkeypatch.setattr(linear, "register_width", lambda: None)
        monkeypatch.setattr(int4, "kernel", lambda: None)
    return str(request.param)


class TestRounding:
    @pytest.mark.parametrize(("outputs", "inputs"), SIZES)
    def test_what_was_rounded_is_what_is_read(self, outputs: int, inputs: int) -> None:
        levels, steps, own = round_groups(weight := noise(outputs, inputs))
        assert levels.min() >= -8 and levels.max() <= 7
        wanted = (levels * steps[..., None].float()).flatten(1)[:, :inputs] * own[:, None]
        torch.testing.assert_close(weights_of(Int4Linear(weight)), wanted, rtol=1e-6, atol=0)
        assert not levels.flatten(1)[:, inputs:].any()

    def test_a_weight_is_within_a_step(self) -> None:
        """Half a step, or up to one at the end without a level, or a little more where a narrower
        step was better for the others (at most .15 of its largest weight)."""
        weight = noise(40, 320) * torch.logspace(-3, 3, 40)[:, None]
        error = (weights_of(Int4Linear(weight)) - weight).abs().view(40, -1, GROUP)
        largest = weight.abs().view(40, -1, GROUP).amax(2, keepdim=True)
        assert (error <= 0.16 * largest).all()

    def test_typical_error(self) -> None:
        """.083 of normal weights; the widest step alone gives .088."""
        weight = noise(256, 1024)
        error = (weights_of(Int4Linear(weight)) - weight).norm() / weight.norm()
        assert error < 0.085

    @pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
    def test_any_size_of_number(self, scale: float) -> None:
        weight, x = noise(16, 64), noise(3, 64, seed=1)
        expected = Int4Linear(weight)(x) * scale
        torch.testing.assert_close(Int4Linear(weight * scale)(x), expected, rtol=2e-2, atol=0)

    def test_groups_of_zeros_and_of_one_weight(self) -> None:
        weight = torch.zeros(3, 96)
        weight[1, 40], weight[2] = 5.0, 1.0
        assert torch.equal(weights_of(Int4Linear(weight)), weight)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(self, bad: float) -> None:
        weight = noise(16, 64)
        weight[3, 4] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            Int4Linear(weight)

    def test_four_and_a_half_bits_a_weight(self) -> None:
        layer = Int4Linear(noise(512, 2048))
        assert layer.packed.memory.nbytes == 512 * 2048 * 4.5 / 8 + 4 * 512


class TestProduct:
    @pytest.mark.parametrize(("outputs", "inputs"), SIZES)
    @pytest.mark.parametrize("rows", [1, 2, 7, 8, 13])
    def test_only_activations_are_rounded(
        self, processor: str, outputs: int, inputs: int, rows: int
    ) -> None:
        """Against its own weights: within half a step of every activation."""
        layer, x = Int4Linear(noise(outputs, inputs), noise(outputs, seed=2)), noise(rows, inputs)
        weight = weights_of(layer)
        half = x.abs().amax(1, keepdim=True) / 127 / 2
        error = (layer(x) - (x @ weight.T + layer.bias)).abs()
        bound = half * weight.abs().sum(1) * 1.001 + 1e-5
        assert layer(x).dtype == torch.float32 and (error <= bound).all()

    def test_whole_numbers_are_exact(self, processor: str) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randint(-7, 8, (70, 500), generator=generator).float()
        x = torch.randint(-127, 128, (9, 500), generator=generator).float()
        weight[:, ::GROUP], x[:, 0] = -8, -127
        y = Int4Linear(weight)(x)
        assert y.round().tolist() == (x @ weight.T).tolist()

    @here
    @pytest.mark.parametrize(("outputs", "inputs"), SIZES)
    def test_a_row_in_a_batch_is_the_row_alone(self, outputs: int, inputs: int) -> None:
        layer, x = Int4Linear(noise(outputs, inputs), noise(outputs)), noise(37, inputs, seed=1)
        together = layer(x)
        assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(37))
        assert all(torch.equal(layer(x[i : i + 3]), together[i : i + 3]) for i in range(0, 36, 3))

    @here
    @pytest.mark.parametrize("wide", [True, False] if register_width() == 64 else [False])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_both_widths_of_register_and_any_team(
        self, wide: bool, threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer, x = Int4Linear(noise(200, 90)), noise(11, 90, seed=1)
        expected = layer(x)
        monkeypatch.setattr(programs, "usable_cores", lambda: threads)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        found = int4.Kernel(wide)
        monkeypatch.setattr(int4, "kernel", lambda: found)
        assert torch.equal(layer(x), expected)
        program = Program(replace(SIMPLE, wide=wide))
        row = program.row(90)
        out = program.linear(row, layer)
        row.values[:] = x[4]
        program.run()
        assert np.array_equal(out.values, expected[4])

    def test_both_ways_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x = Int4Linear(noise(1100, 100)), noise(5, 100)
        compiled = layer.several(x)
        monkeypatch.setattr(int4, "kernel", lambda: None)
        torch.testing.assert_close(layer.several(x), compiled, rtol=1e-5, atol=1e-5)

    def test_nan_stays_where_it_is(self, processor: str) -> None:
        layer, x = Int4Linear(noise(24, 64)), noise(4, 64)
        x[1, 9] = float("nan")
        y = layer(x)
        assert y[1].isnan().all() and y[[0, 2, 3]].isfinite().all()

    def test_no_rows(self, processor: str) -> None:
        assert Int4Linear(noise(24, 64))(torch.zeros(2, 0, 64)).shape == (2, 0, 24)


def test_heads_stay_int8_and_the_rest_is_packed() -> None:
    from tests.shapes import opened

    for name in ("dense", "moe", "attention_first"):
        backbone = opened(name, dtype="int4")
        kinds = {type(m).__name__: m for m in backbone.modules() if isinstance(m, Int4Linear)}
        assert backbone.packed and kinds and isinstance(backbone.head, Int8Linear)


def test_int4_is_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose("cpu", "int4")
    assert choice.packed and choice.for_many_rows().weights == "int8"
    assert "quality" in choice.reason or "slow" in choice.reason
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose("auto", "int4").device == "cpu"
    with pytest.raises(BadInput, match="int4 runs on the CPU only"):
        choose("cuda", "int4")
