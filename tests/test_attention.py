"""Compiled attention is torch's, for every shape of crop and head; int8 towers run on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.device import Choice, int8_works
from lfm2_mm.rows import Product
from tests.test_tower import pair, some_patches
from vision.attention import attend, attention
from vision.compiled_tower import CompiledTower
from vision.loading import load_vision
from vision.tower import VisionModel

# crops, patches of a crop, heads, numbers of a head
SHAPES = [
    (1, 4, 1, 8),
    (2, 36, 4, 8),
    (3, 64, 2, 72),
    (1, 68, 3, 16),
    (1, 132, 2, 40),
    (2, 256, 2, 64),
]


def a_product(crops: int, patches: int, heads: int, dim: int, seed: int = 0) -> Product:
    generator = torch.Generator().manual_seed(seed)
    rows, width = crops * patches, heads * dim
    return Product(
        2 * torch.randn(rows, 3 * width, generator=generator),
        torch.rand(rows, generator=generator) + 0.5,
        torch.randn(3 * width, generator=generator),
    )


def parts(product: Product, crops: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values (crops, heads, patches, dim) that a product means."""
    assert product.bias is not None
    meant = product.values * product.steps[:, None] + product.bias
    q, k, v = meant.view(crops, -1, 3, heads, meant.shape[1] // 3 // heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def rows_of(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).reshape(-1, mixed.shape[1] * mixed.shape[3])


def off(actual: Tensor, exact: Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


@pytest.fixture(params=[False, True], ids=["our loops", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways on any processor: what tiles speed up, torch computes without them, too."""
    monkeypatch.setattr("vision.attention.has_tiles", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestShapes:
    def test_is_as_near_as_torch_in_bfloat16(
        self, shape: tuple[int, int, int, int], tiles: bool
    ) -> None:
        crops, _, heads, dim = shape
        if not tiles and attention(dim) is None:
            pytest.skip("this processor has no products of bfloat16")
        product = a_product(*shape)
        q, k, v = parts(product, crops, heads)
        exact = rows_of(F.scaled_dot_product_attention(q, k, v))
        halves = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
        theirs = rows_of(halves.float())
        ours = attend(product, crops, heads)
        # Seen: up to 1.05 of torch's error, which is 0.003; 1e-3 for crops of a few patches.
        assert off(ours, exact) < 1.2 * off(theirs, exact) + 1e-3

    def test_without_such_products_it_is_torch(
        self, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crops, _, heads, _ = shape
        monkeypatch.setattr("vision.attention.has_tiles", lambda: False)
        monkeypatch.setattr("vision.attention.attention", lambda dim: None)
        product = a_product(*shape)
        exact = rows_of(F.scaled_dot_product_attention(*parts(product, crops, heads)))
        torch.testing.assert_close(attend(product, crops, heads), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("patches", "dim"), [(6, 8), (8, 12)])
def test_shapes_without_loops_go_through_torch(
    patches: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision.attention.has_tiles", lambda: False)
    product = a_product(1, patches, 2, dim)
    exact = rows_of(F.scaled_dot_product_attention(*parts(product, 1, 2)))
    torch.testing.assert_close(attend(product, 1, 2), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("tiles")
def test_one_key_may_take_everything() -> None:
    """Scores a thousand apart: weights of nothing beside one of everything, and no NaN."""
    product = a_product(1, 64, 1, 16)
    product.values[:, :32] *= 30
    exact = rows_of(F.scaled_dot_product_attention(*parts(product, 1, 1)))
    ours = attend(product, 1, 1)
    assert torch.isfinite(ours).all()
    assert off(ours, exact) < 0.05  # of scores around 1,000 a bfloat16's step is several


@pytest.mark.usefixtures("tiles")
def test_a_crop_does_not_see_the_next_one() -> None:
    both = a_product(2, 36, 4, 8)
    first = Product(both.values[:36].clone(), both.steps[:36].clone(), both.bias)
    assert torch.equal(attend(both, 2, 4)[:36], attend(first, 1, 4))


class TestTower:
    pytestmark = pytest.mark.usefixtures("tiles")

    @staticmethod
    def opened() -> VisionModel:
        if not int8_works():
            pytest.skip("this torch has no int8 product")
        model = load_vision(pair("lfm2").folder, Choice("cpu", "int8", 1, "a test"))
        if model.tower.compiled is None:
            pytest.skip("this processor has no byte products")
        return model

    def test_is_there_for_int8_only(self) -> None:
        assert isinstance(self.opened().tower.compiled, CompiledTower)
        assert pair("lfm2").ours.tower.compiled is None

    def test_equals_the_plain_blocks_to_rounding(self) -> None:
        """Both round to 8 bits, here and there to the other neighbour; seen: .006."""
        model, patches = self.opened(), some_patches(3, 6, 8)
        fast = model(patches, 6, 8)
        model.tower.__dict__["compiled"] = None
        assert 0 < off(fast, model(patches, 6, 8)) < 0.02

    def test_a_crop_alone_is_the_same_bit_for_bit(self) -> None:
        model, patches = self.opened(), some_patches(3, 6, 8)
        together = model(patches, 6, 8)
        for number in range(3):
            alone = model(patches[number : number + 1], 6, 8)
            assert torch.equal(alone[0], together[number])

    def test_what_it_is_given_stays(self) -> None:
        model, patches = self.opened(), some_patches(1, 6, 8)
        before = patches.clone()
        first = model(patches, 6, 8)
        assert torch.equal(patches, before)
        assert torch.equal(model(patches, 6, 8), first)
