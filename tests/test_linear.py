"""int8 products: near the exact ones by a bound, and every token on its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm import device
from lfm2_mm.linear import Int8Linear, Linear, quantise_rows, room

SIZES = [(1, 1), (3, 5), (64, 32), (65, 33), (200, 17), (1024, 96)]  # inputs, outputs


@pytest.fixture(params=["as this processor", "without VNNI"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Levels of a weight; those for older processors are computed here too."""
    if request.param == "without VNNI":
        monkeypatch.setattr(device, "processor_features", lambda: frozenset({"avx2"}))
    return 127 if device.has_exact_int8() else 63


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bound(x: Tensor, weight: Tensor, levels: int) -> Tensor:
    """The largest error rounding can make: half a step of each factor times the other's size.

    A quantised factor is at most half a step larger than the exact one; 1e-5 is for float sums.
    """
    step_x = x.abs().amax(-1, keepdim=True) / 127
    step_w = weight.abs().amax(1) / levels
    sums_x, sums_w = x.abs().sum(-1, keepdim=True), weight.abs().sum(1)
    both = x.shape[-1] * step_x * step_w / 4
    return (step_x * sums_w / 2 + step_w * sums_x / 2 + both) * 1.001 + 1e-5


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_error_is_within_rounding(
    processor: int, inputs: int, outputs: int, rows: int, bias: bool
) -> None:
    weight, x = noise(outputs, inputs), noise(rows, inputs, seed=1)
    b = noise(outputs, seed=2) if bias else None
    y = Int8Linear(weight, b)(x)
    assert y.dtype == torch.float32 and y.shape == (rows, outputs)
    assert ((y - F.linear(x, weight, b)).abs() <= bound(x, weight, processor)).all()


def test_rounding_is_typically_far_below_its_bound(processor: int) -> None:
    """Errors of 1,024 products cancel: 1 % of the result's size, 2 % with half the levels."""
    weight, x = noise(96, 1024), noise(50, 1024, seed=1)
    exact = x @ weight.T
    error = (Int8Linear(weight)(x) - exact).norm() / exact.norm()
    assert error < (0.015 if processor == 127 else 0.02)


def test_sums_are_exact_at_the_extremes(processor: int) -> None:
    """All products at their largest and of one sign: a 16-bit sum would saturate."""
    weight, x = torch.ones(8, 512), torch.ones(3, 512)
    torch.testing.assert_close(Int8Linear(weight)(x), x @ weight.T, atol=0, rtol=1e-5)
    torch.testing.assert_close(Int8Linear(-weight)(x), -x @ weight.T, atol=0, rtol=1e-5)
    torch.testing.assert_close(Int8Linear(weight)(-x), -x @ weight.T, atol=0, rtol=1e-5)


def test_a_quantised_value_comes_back_unchanged(processor: int) -> None:
    """Whole numbers that reach the largest level are exact on both sides."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-processor, processor + 1, (16, 40), generator=generator).float()
    x = torch.randint(-127, 128, (9, 40), generator=generator).float()
    weight[:, 0], x[:, 0] = processor, -127
    torch.testing.assert_close(Int8Linear(weight)(x), x @ weight.T, atol=0, rtol=1e-5)


def test_many_lengths_share_few_compiled_products() -> None:
    sizes = {rows: len(room(rows, 4)) for rows in range(1, 4097)}
    assert all(rows <= size < rows + max(8, rows / 16 + 1) for rows, size in sizes.items())
    assert all(sizes[rows] == rows for rows in range(1, 9))
    assert len(set(sizes.values())) < 150


class TestEachTokenAlone:
    @pytest.mark.parametrize(("inputs", "outputs"), SIZES)
    def test_a_row_in_a_batch_is_the_row_alone(self, inputs: int, outputs: int) -> None:
        """Bitwise in batches of two and more. A single row takes another order of the same
        products: equal to float32 rounding, 1e-6 of the largest."""
        linear, x = Int8Linear(noise(outputs, inputs)), noise(37, inputs, seed=1)
        together = linear(x)
        for i in range(len(x) - 1):
            assert torch.equal(together[i : i + 2], linear(x[i : i + 2]))
            alone = linear(x[i : i + 1])[0]
            assert (alone - together[i]).abs().max() <= 1e-6 * together[i].abs().max()
        order = torch.randperm(37, generator=torch.Generator().manual_seed(3))
        assert torch.equal(linear(x[order]), together[order])

    def test_ties_round_within_a_step(self, processor: int) -> None:
        """Halfway between two levels a single row may go up where a batch goes down, no further."""
        weight, x = noise(24, 64), torch.arange(64.0) - 31.5
        x[0] = 127
        together, alone = Int8Linear(weight)(x.expand(2, 64)), Int8Linear(weight)(x[None])
        error = bound(x[None], weight, processor)
        assert ((alone - x @ weight.T).abs() <= error).all()
        assert ((together - x @ weight.T).abs() <= error).all()

    def test_leading_axes_do_not_matter(self) -> None:
        linear, x = Int8Linear(noise(24, 64), noise(24)), noise(30, 64, seed=1)
        flat = linear(x)
        assert torch.equal(linear(x.view(5, 6, 64)), flat.view(5, 6, 24))
        assert torch.equal(linear(x.view(5, 2, 3, 64)), flat.view(5, 2, 3, 24))
        torch.testing.assert_close(linear(x[0]), flat[0], atol=1e-6, rtol=1e-6)
        strided = linear(x.view(5, 6, 64).transpose(0, 1))
        assert torch.equal(strided, flat.view(5, 6, 24).transpose(0, 1))

    def test_outliers_in_one_token_do_no_harm_to_others(self) -> None:
        linear, x = Int8Linear(noise(24, 64)), noise(6, 64, seed=1)
        wild = x.clone()
        wild[2] *= 1e6
        wild[4, 7] = 3e4
        calm = [0, 1, 3, 5]
        assert torch.equal(linear(wild)[calm], linear(x)[calm])

    def test_outliers_in_one_output_do_no_harm_to_others(self) -> None:
        weight, x = noise(24, 64), noise(6, 64, seed=1)
        wild = weight.clone()
        wild[3, 5] = 1e5
        others = [i for i in range(24) if i != 3]
        assert torch.equal(Int8Linear(wild)(x)[:, others], Int8Linear(weight)(x)[:, others])

    def test_nan_stays_where_it_is(self) -> None:
        linear, x = Int8Linear(noise(24, 64)), noise(4, 64, seed=1)
        spoilt = x.clone()
        spoilt[1, 9] = float("nan")
        y = linear(spoilt)
        assert y[1].isnan().all() and linear(spoilt[1:2]).isnan().all()
        assert torch.equal(y[[0, 2, 3]], linear(x)[[0, 2, 3]])


class TestEdges:
    def test_no_rows(self) -> None:
        assert Int8Linear(noise(24, 64))(torch.zeros(0, 64)).shape == (0, 24)
        assert Int8Linear(noise(24, 64))(torch.zeros(2, 0, 64)).shape == (2, 0, 24)

    def test_zeros(self) -> None:
        """Rows of zeros have no largest entry to scale by."""
        weight = noise(5, 8)
        weight[2] = 0
        y = Int8Linear(weight, torch.arange(5.0))(torch.stack([torch.zeros(8), noise(8)]))
        assert torch.equal(y[0], torch.arange(5.0)) and y[1, 2] == 2 and y.isfinite().all()

    @pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
    def test_any_size_of_number(self, scale: float) -> None:
        weight, x = noise(16, 64), noise(3, 64, seed=1)
        expected = Int8Linear(weight)(x) * scale
        torch.testing.assert_close(Int8Linear(weight)(x * scale), expected, atol=0, rtol=2e-2)
        torch.testing.assert_close(Int8Linear(weight * scale)(x), expected, atol=0, rtol=2e-2)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_weights_of_other_dtypes(self, dtype: torch.dtype) -> None:
        weight, x = noise(16, 64).to(dtype), noise(3, 64)
        assert torch.equal(Int8Linear(weight)(x), Int8Linear(weight.float())(x))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(self, bad: float) -> None:
        weight = noise(16, 64)
        weight[3, 4] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            Int8Linear(weight)

    def test_the_weight_given_is_not_changed(self) -> None:
        weight, x = noise(16, 64), noise(3, 64)
        kept, given = weight.clone(), x.clone()
        Int8Linear(weight)(x)
        assert torch.equal(weight, kept) and torch.equal(x, given)


def test_weights_are_rounded_within_half_a_step(processor: int) -> None:
    weight = noise(40, 300) * torch.logspace(-3, 3, 40)[:, None]
    levels, steps = quantise_rows(weight)
    assert levels.dtype == torch.int8 and levels.abs().amax(1).eq(processor).all()
    error = (levels * steps[:, None] - weight).abs()
    assert (error <= steps[:, None] * 0.5001).all()


@pytest.mark.parametrize("bias", [False, True])
def test_the_float_layer_is_torch_s(bias: bool) -> None:
    linear = Linear(6, 4, bias=bias)
    for parameter in linear.parameters():
        torch.nn.init.normal_(parameter)
    x = noise(2, 3, 6)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
