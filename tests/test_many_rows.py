"""int8 layers over many positions: the plain layers to rounding, and every text on its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.device import int8_works
from lfm2_mm.rows import rows
from tests.shapes import MASKS, full, opened, some_ids

pytestmark = pytest.mark.skipif(
    not int8_works() or rows() is None, reason="this processor has no byte products"
)
FITTING = ["dense", "conv_only"]  # all sizes in whole lanes


def off(actual: Tensor, exact: Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


def plain(name: str) -> Backbone:
    backbone = opened(name, "int8")
    backbone.__dict__["many_rows"] = None
    return backbone


@pytest.mark.parametrize("name", FITTING)
class TestAgainstThePlainLayers:
    def test_both_are_as_far_from_float32(self, name: str) -> None:
        ids = some_ids(3, 40)
        exact = full(opened(name), ids)
        fast, slow = off(full(opened(name, "int8"), ids), exact), off(full(plain(name), ids), exact)
        assert opened(name, "int8").many_rows is not None
        assert fast < 1.3 * slow + 0.002

    @pytest.mark.parametrize("case", MASKS)
    def test_padding_is_never_seen(self, name: str, case: str) -> None:
        mask = torch.tensor(MASKS[case], dtype=torch.bool)
        ids = some_ids(*mask.shape)
        fast, slow = opened(name, "int8"), plain(name)
        got, expected = (b(b.embed(ids), mask)[mask] for b in (fast, slow))
        assert off(got, expected) < 0.05  # two roundings of the same; a wrong mask gives 0.5

    def test_portions_go_on_from_each_other(self, name: str) -> None:
        backbone, ids = opened(name, "int8"), some_ids(1, 30)
        embeds = backbone.embed(ids)
        whole, _ = backbone.step(embeds)
        parts, state = [], None
        for portion in embeds.split((2, 17, 11), dim=1):
            hidden, state = backbone.step(portion, state)
            parts.append(hidden)
        assert off(torch.cat(parts, 1), whole) < 0.02

    def test_what_it_is_given_stays(self, name: str) -> None:
        backbone = opened(name, "int8")
        embeds = backbone.embed(some_ids(1, 9))
        before = embeds.clone()
        backbone.step(embeds)
        assert torch.equal(embeds, before)


@pytest.mark.parametrize("name", ["moe", "attention_only"])
def test_is_left_out_where_it_does_not_fit(name: str) -> None:
    backbone = opened(name, "int8")
    expected = name == "attention_only"  # its heads are wider than the model, in whole lanes
    assert (backbone.many_rows is not None) == expected
    assert opened(name).many_rows is None
