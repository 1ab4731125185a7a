"""The passes between int8 products compute what torch computes in many, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.linear import Int8Linear
from lfm2_mm.rows import Codes, Product, Rows, multiply, rows
from tests.shapes import assert_close

pytestmark = pytest.mark.skipif(rows() is None, reason="this processor has no byte products")

SIZES = [(1, 16), (7, 48), (8, 64), (100, 768), (33, 4304)]
# float32 sums in another order, an exponential of 7e-8, and a reciprocal in place of a division:
# up to 2e-6 was seen beside numbers of up to 20.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def passes() -> Rows:
    found = rows()
    assert found is not None
    return found


def some(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def a_product(n: int, size: int, seed: int = 5, *, bias: bool = True) -> tuple[Product, Tensor]:
    """A product, and the floats that it means."""
    values, steps = some(n, size, seed=seed), some(n, seed=seed + 1).abs() + 0.1
    shift = some(size, seed=seed + 2) if bias else None
    meant = values * steps[:, None] + (0.0 if shift is None else shift)
    return Product(values, steps, shift), meant


def floats(codes: Codes) -> Tensor:
    return (codes.codes[: len(codes.steps)].float() - 128) * codes.steps[:, None]


def assert_rounded(codes: Codes, exact: Tensor) -> None:
    """Each row in 127 steps up to its largest number, every number at the nearest."""
    assert_close(codes.steps, exact.abs().amax(1) / 127, **CLOSE)
    off = (floats(codes) - exact).abs() / codes.steps[:, None]
    assert off.max() < 0.502


@pytest.mark.parametrize(("n", "size"), SIZES)
class TestAgainstTorch:
    def test_rounding(self, n: int, size: int) -> None:
        x = some(n, size, scale=3) + 1
        assert_rounded(passes().round(x), x)

    def test_rounding_as_a_layer_does(self, n: int, size: int) -> None:
        layer = Int8Linear(some(48, size, scale=size**-0.5), some(48, seed=1))
        x = some(n, size, seed=2)
        product = multiply(passes().round(x), layer)
        assert product.bias is not None
        meant = product.values * product.steps[:, None] + product.bias
        # a number between two codes may go to either: one step of one input
        torch.testing.assert_close(meant, layer.several(x), atol=0.05, rtol=0)
        assert (meant - layer.several(x)).abs().mean() < 1e-3

    @pytest.mark.parametrize("bias", [True, False])
    def test_layer_norm_with_what_is_added(self, n: int, size: int, bias: bool) -> None:
        x, weight, shift = some(n, size), some(size, seed=1), some(size, seed=2)
        product, meant = a_product(n, size, bias=bias)
        exact = F.layer_norm(x + meant, (size,), weight, shift, 1e-6)
        x_codes, x_floats = x.clone(), x.clone()
        codes = passes().norm(x_codes, weight, shift, 1e-6, add=product, centred=True)
        out = passes().norm_out(x_floats, weight, shift, 1e-6, add=product, centred=True)
        assert_close(out, exact, **CLOSE)
        assert_rounded(codes, exact)
        assert_close(x_codes, x + meant, **CLOSE)  # the residual goes on
        assert torch.equal(x_codes, x_floats)

    def test_rms_norm(self, n: int, size: int) -> None:
        x, weight = some(n, size) + 5, some(size, seed=1)
        before = x.clone()
        exact = F.rms_norm(x, (size,), weight, 1e-5)
        out = passes().norm_out(x, weight, None, 1e-5, centred=False)
        assert_close(out, exact, **CLOSE)
        assert_rounded(passes().norm(x, weight, None, 1e-5, centred=False), exact)
        assert torch.equal(x, before)  # nothing was to be added

    def test_gelu(self, n: int, size: int) -> None:
        product, meant = a_product(n, size)
        exact = F.gelu(meant, approximate="tanh")
        assert_rounded(passes().gelu(product), exact)

    @pytest.mark.parametrize("bias", [True, False])
    def test_swiglu(self, n: int, size: int, bias: bool) -> None:
        product, meant = a_product(n, 2 * size, bias=bias)
        gate, up = meant.chunk(2, dim=1)
        assert_rounded(passes().swiglu(product), F.silu(gate) * up)


def test_large_numbers_overflow_nowhere() -> None:
    """Activations of -1e4 are 0 and of 1e4 themselves; no exponential becomes infinite."""
    values = torch.tensor([[-1e4, 1e4, -100.0, 100.0, -20.0, 20.0, 0.0, 1e-30] * 2])
    product = Product(values.clone(), torch.ones(1), None)
    codes = passes().gelu(product)
    assert_close(product.values, F.gelu(values, approximate="tanh"), **CLOSE)
    assert_rounded(codes, F.gelu(values, approximate="tanh"))
    pair = Product(torch.cat([values, torch.ones(1, 16)], 1), torch.ones(1), None)
    assert_rounded(passes().swiglu(pair), F.silu(values))


def test_rows_of_zeros_stay_zeros() -> None:
    x = torch.zeros(3, 32)
    assert torch.equal(floats(passes().round(x)), x)
    out = passes().norm(x, torch.ones(32), torch.zeros(32), 1e-6, centred=True)
    assert torch.equal(floats(out), x)


def test_a_row_depends_on_itself_alone() -> None:
    x, weight, shift = some(50, 96), some(96, seed=1), some(96, seed=2)
    together = passes().norm(x, weight, shift, 1e-6, centred=True)
    for row in (0, 17, 49):
        alone = passes().norm(x[row : row + 1].clone(), weight, shift, 1e-6, centred=True)
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.steps[0], together.steps[row])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    x = some(101, 64)
    try:
        torch.set_num_threads(threads)
        codes = passes().round(x)
    finally:
        torch.set_num_threads(before)
    assert_rounded(codes, x)


def test_an_outlier_costs_its_own_row_only() -> None:
    x = some(4, 64)
    calm = passes().round(x)
    x[2, 5] = 1e4
    wild = passes().round(x)
    others = [0, 1, 3]
    assert torch.equal(wild.codes[others], calm.codes[others])
    assert_rounded(wild, x)
