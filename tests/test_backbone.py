"""Our backbone against transformers' and against plain references, stateless passes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.backbone import Backbone
from lfm2_mm.errors import BadInput
from tests.shapes import (
    ATTENTION,
    CONV,
    MASKS,
    NAMES,
    Pair,
    assert_close,
    folder,
    full,
    opened,
    padded,
    pair,
    reference_at,
    reference_hidden,
    some_ids,
)

only_530 = pytest.mark.skipif(
    transformers.__version__ != "5.3.0",
    reason=f"documents transformers 5.3.0; here is {transformers.__version__}",
)


@pytest.fixture(params=NAMES)
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 33])
def test_full_pass_equals_transformers(both: Pair, length: int) -> None:
    ids = some_ids(2, length, seed=length)
    expected = reference_hidden(both.reference, ids)
    hidden = full(both.ours, ids)
    assert_close(hidden, expected)
    assert_close(both.ours.logits(hidden), both.reference.lm_head(expected))


def test_embeds_equal_transformers(both: Pair) -> None:
    ids = torch.arange(512)[None]  # the pad row too: it is not zero
    assert torch.equal(both.ours.embed(ids), both.reference.model.embed_tokens(ids))


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_a_row_does_not_see_its_padding_or_its_batch(both: Pair, masks: list[list[int]]) -> None:
    rows = [some_ids(sum(mask), seed=i) for i, mask in enumerate(masks)]
    ids, mask = padded(rows, masks)
    hidden = both.ours(both.ours.embed(ids), mask)
    for row, real, alone in zip(hidden, mask, rows, strict=True):
        if len(alone):
            assert_close(row[real], full(both.ours, alone[None])[0])


@pytest.mark.parametrize("name", ["dense", "attention_only", "kernel_two", "moe"])
def test_left_padded_batch_equals_transformers(name: str) -> None:
    """Batches of two and more are right in 5.3.0 (without bias in the convolution)."""
    both = pair(name)
    rows = [some_ids(n, seed=n) for n in (3, 1, 6)]
    ids, mask = padded(rows, [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1] * 6])
    expected = reference_hidden(both.reference, ids, attention_mask=mask.long())
    assert_close(both.ours(both.ours.embed(ids), mask)[mask], expected[mask])


@pytest.mark.parametrize("name", ["dense", "attention_only", "kernel_two", "moe"])
def test_right_padded_batch_equals_transformers_at_padding_too(name: str) -> None:
    """A query's expansion is padding whose vectors are used: it sees the real tokens only."""
    both = pair(name)
    rows = [some_ids(n, seed=n) for n in (3, 1, 6)]
    ids, mask = padded(rows, [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1] * 6])
    expected = reference_hidden(both.reference, ids, attention_mask=mask.long())
    assert_close(both.ours(both.ours.embed(ids), mask), expected)


class TestWhereTransformersIsWrong:
    """Version 5.3.0 contradicts its own full pass; ours agrees with that pass.

    The second half of each test documents the reference's fault and runs on 5.3.0 only.
    """

    LENGTH = 7

    def split_at(self, cut: int) -> tuple[Pair, Tensor, Tensor]:
        """The pair, ids, and the hidden states after `cut` by transformers' full pass."""
        both = pair("dense")
        ids = some_ids(1, self.LENGTH)
        return both, ids, reference_hidden(both.reference, ids)[:, cut:]

    def ours(self, both: Pair, ids: Tensor, *cuts: int) -> Tensor:
        """Hidden states of the last chunk, by steps over `cuts`."""
        state = None
        for start, end in pairwise([0, *cuts, ids.shape[1]]):
            hidden, state = both.ours.step(both.ours.embed(ids[:, start:end]), state)
        return hidden

    @torch.no_grad()
    def theirs(self, both: Pair, ids: Tensor, *cuts: int) -> Tensor:
        cache = None
        for start, end in pairwise([0, *cuts, ids.shape[1]]):
            out = both.reference.model(
                input_ids=ids[:, start:end], past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
        return out.last_hidden_state

    @pytest.mark.parametrize(
        "cuts", [(1, 2, 3, 4, 5, 6), (4,), (2, 4)], ids=["one token first", "two chunks", "three"]
    )
    def test_our_steps_equal_its_full_pass(self, cuts: tuple[int, ...]) -> None:
        both, ids, expected = self.split_at(cuts[-1])
        assert_close(self.ours(both, ids, *cuts), expected)

    @only_530
    def test_one_token_prefill_then_decode(self) -> None:
        both, ids, expected = self.split_at(1)
        two, expected = ids[:, :2], expected[:, :1]
        assert_close(self.ours(both, two, 1), expected)
        assert (self.theirs(both, two, 1) - expected).abs().max() > 0.1

    @only_530
    def test_chunked_continuation(self) -> None:
        both, ids, expected = self.split_at(4)
        assert (self.theirs(both, ids, 4) - expected).abs().max() > 0.1

    def test_left_padded_batch_of_one(self) -> None:
        both = pair("dense")
        row = some_ids(4)
        ids, mask = padded([row], [[0, 0, 0, 1, 1, 1, 1]])
        expected = reference_hidden(both.reference, row[None])[0]
        assert_close(both.ours(both.ours.embed(ids), mask)[mask], expected)

    @only_530
    def test_left_padded_batch_of_one_there(self) -> None:
        both = pair("dense")
        row = some_ids(4)
        ids, mask = padded([row], [[0, 0, 0, 1, 1, 1, 1]])
        expected = reference_hidden(both.reference, row[None])[0]
        theirs = reference_hidden(both.reference, ids, attention_mask=mask.long())
        assert (theirs[mask] - expected).abs().max() > 0.1

    def test_cut_back_and_gone_on(self) -> None:
        both, ids, expected = self.split_at(5)
        _, state = both.ours.step(both.ours.embed(some_ids(1, 9, seed=3)))
        _, state = both.ours.step(both.ours.embed(ids[:, :5]))
        _, further = both.ours.step(both.ours.embed(some_ids(1, 4, seed=4)), state)
        hidden, _ = both.ours.step(both.ours.embed(ids[:, 5:]), further.cut(5))
        assert_close(hidden, expected)

    @only_530
    @torch.no_grad()
    def test_crop_there(self) -> None:
        both, ids, expected = self.split_at(6)
        longer = torch.cat([ids[:, :6], some_ids(1, 4, seed=4)], 1)
        cache = both.reference.model(input_ids=longer, use_cache=True).past_key_values
        cache.crop(6)
        out = both.reference.model(input_ids=ids[:, 6:], past_key_values=cache, use_cache=True)
        assert (out.last_hidden_state - expected).abs().max() > 0.1


class TestActiveExperts:
    @pytest.mark.parametrize("active", [1, 2, 5, 6])
    def test_equals_transformers_set_so(self, active: int) -> None:
        ours = opened("moe", active_experts=active)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder("moe"), dtype=torch.float32, num_experts_per_tok=active
        ).eval()
        ids = some_ids(2, 9)
        assert_close(full(ours, ids), reference_hidden(reference, ids))
        assert ours.config.experts is not None and ours.config.experts.active == active

    def test_the_number_matters(self) -> None:
        ids = some_ids(1, 9)
        one = opened("moe", active_experts=1)
        assert (full(one, ids) - full(pair("moe").ours, ids)).abs().max() > 0.1

    @pytest.mark.parametrize("active", [0, -1, 7])
    def test_wrong_numbers_name_the_right_ones(self, active: int) -> None:
        with pytest.raises(BadInput, match=f"{active} active experts.*1 to 6"):
            opened("moe", active_experts=active)

    def test_a_dense_checkpoint_has_none(self) -> None:
        with pytest.raises(BadInput, match="dense"):
            opened("dense", active_experts=2)


class TestGradients:
    @pytest.mark.parametrize("name", NAMES)
    def test_equal_transformers(self, name: str) -> None:
        ours = opened(name).requires_grad_(True)
        reference = reference_at(folder(name))
        ids, targets = some_ids(2, 30), some_ids(2, 30, seed=1)  # most experts get some
        logits = ours.logits(ours(ours.embed(ids)))
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        logits = reference(input_ids=ids, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        self.compare(published_gradients(ours), reference)

    def compare(self, ours: dict[str, Tensor], reference: Any) -> None:
        for key, parameter in reference.named_parameters():
            assert parameter.grad is not None, key
            name = key.removeprefix("model.")
            for part, expected in unfused(name, parameter.grad):
                # an expert that is never chosen has none; zeros elsewhere would prove nothing
                assert expected.any() or ".experts." in part, part
                # of the largest entry: sums over tokens in another order cancel differently
                near = 1e-4 * expected.abs().max().item()
                torch.testing.assert_close(
                    ours.pop(part), expected, atol=near, rtol=0, msg=lambda m, p=part: f"{p}: {m}"
                )
        assert not [key for key in ours if not key.endswith("expert_bias")]

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_padding_and_empty_rows_leave_them_alone(self, bidirectional: bool) -> None:
        """The gradient of a padded batch is the sum of the rows' own, finite throughout."""
        ours = opened("dense", bidirectional=bidirectional).requires_grad_(True)
        masks = [[0, 1, 1, 0, 1], [0] * 5, [0, 0, 0, 0, 1], [1] * 5]
        rows = [some_ids(sum(mask), seed=i) for i, mask in enumerate(masks)]
        ids, mask = padded(rows, masks)
        ours(ours.embed(ids), mask)[mask].square().sum().backward()
        together = published_gradients(ours)
        ours.zero_grad()
        for row in rows:
            if len(row):
                ours(ours.embed(row[None])).square().sum().backward()
        for key, alone in published_gradients(ours).items():
            assert together[key].isfinite().all(), key
            near = 1e-4 * alone.abs().max().item()
            torch.testing.assert_close(together[key], alone, atol=near, rtol=0)

    def test_a_new_backbone_learns_and_then_decodes(self) -> None:
        """What a recipe does: random weights, a few steps of Adam, then step by step."""
        config = pair("dense").ours.config
        ours = Backbone.new(config, seed=1)
        ids = some_ids(4, 12)
        optimizer = torch.optim.Adam(ours.parameters(), lr=3e-3)
        losses = []
        for _ in range(60):
            logits = ours.logits(ours(ours.embed(ids[:, :-1])))
            losses.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert losses[0] > 6 and losses[-1] < 0.5  # ln 512 = 6.2 knows nothing
        hidden, _ = ours.step(ours.embed(ids[:, :-1]))
        with torch.no_grad():
            best = ours.logits(hidden).argmax(-1)
        assert (best[:, 3:] == ids[:, 4:]).float().mean() > 0.95


def published_gradients(backbone: Backbone) -> dict[str, Tensor]:
    """Gradients under the published names: those of the weights, put in their place for once."""
    kept = {name: p.data for name, p in backbone.named_parameters()}
    try:
        for p in backbone.parameters():
            p.data = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        return {key: tensor.clone() for key, tensor in backbone.state_tensors().items()}
    finally:
        for name, p in backbone.named_parameters():
            p.data = kept[name]


def unfused(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """transformers' fused experts as the per-expert tensors of the published files."""
    trunk, _, leaf = name.rpartition(".")
    if leaf == "gate_up_proj":
        half = tensor.shape[1] // 2
        gates = [(f"{trunk}.{e}.w1.weight", t[:half]) for e, t in enumerate(tensor)]
        return gates + [(f"{trunk}.{e}.w3.weight", t[half:]) for e, t in enumerate(tensor)]
    if leaf == "down_proj":
        return [(f"{trunk}.{e}.w2.weight", t) for e, t in enumerate(tensor)]
    return [(name, tensor)]


class TestNew:
    def test_seed_decides(self) -> None:
        config = pair("moe").ours.config
        one, same, other = (Backbone.new(config, seed=s).state_tensors() for s in (3, 3, 4))
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not torch.equal(one["embed_tokens.weight"], other["embed_tokens.weight"])

    def test_every_weight_is_set(self) -> None:
        """Nothing is left as memory was found: matrices near 0.02, norms one, biases zero."""
        new = Backbone.new(pair("attention_first").ours.config, seed=0)
        for key, tensor in new.state_tensors().items():
            if key.endswith("bias"):
                assert not tensor.any(), key
            elif tensor.dim() == 1:
                assert (tensor == 1).all(), key
            else:
                assert 0.015 < tensor.std() < 0.025, key


class TestOtherDtypes:
    """int8 and bf16 stay near fp32.

    Rounding to 8 bits costs about 0.8 % a product (0.3 % in bf16), random from product to product;
    through 24 products of gain one that makes 4 % (1.5 %). The median over tokens is compared,
    since now and then a token of the mixture is routed to another expert. 4 bits cost 8 % of random
    weights a product, ten times as much.
    """

    @pytest.mark.parametrize(("dtype", "limit"), [("bf16", 0.03), ("int8", 0.06), ("int4", 0.6)])
    @pytest.mark.parametrize("name", NAMES)
    def test_logits_near_fp32(self, name: str, dtype: str, limit: float) -> None:
        ids = some_ids(2, 24)
        exact = pair(name).ours.logits(full(pair(name).ours, ids))
        other = opened(name, dtype=dtype)
        hidden = full(other, ids)
        logits = other.logits(hidden)
        assert hidden.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
        error = (logits.float() - exact).flatten(0, 1).norm(dim=1)
        relative = error / exact.flatten(0, 1).norm(dim=1)
        assert relative.median() < limit

    @pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
    def test_steps_near_the_full_pass(self, dtype: str) -> None:
        ours = opened("dense", dtype=dtype)
        ids, state, parts = some_ids(2, 12), None, []
        for chunk in ids.split([1, 5, 1, 1, 4], dim=1):
            hidden, state = ours.step(ours.embed(chunk), state)
            parts.append(hidden)
        whole, steps = full(ours, ids).float(), torch.cat(parts, 1).float()
        error = (steps - whole).norm(dim=-1) / whole.norm(dim=-1)
        assert error.median() < 0.04  # int8 keeps its state in bf16 where the processor has that

    def test_router_and_its_bias_stay_exact(self) -> None:
        """A flipped choice of expert costs more than int8 saves in so small a matrix."""
        exact = pair("moe").ours.layers[2].feed_forward
        for dtype in ("bf16", "int8"):
            other = opened("moe", dtype=dtype).layers[2].feed_forward
            assert torch.equal(other.expert_bias, exact.expert_bias)
            assert other.expert_bias.dtype == torch.float32
        assert torch.equal(other.gate.weight, exact.gate.weight)

    @pytest.mark.parametrize("dtype", ["fp32", "int8"])
    @pytest.mark.parametrize("name", ["attention_first", "dense"])
    def test_without_a_head_only_logits_are_missing(self, name: str, dtype: str) -> None:
        whole, bare = opened(name, dtype=dtype), opened(name, dtype=dtype, head=False)
        ids = some_ids(1, 8)
        hidden = full(whole, ids)
        assert torch.equal(full(bare, ids), hidden)
        with pytest.raises(ValueError, match="without a head"):
            bare.logits(hidden)


def test_the_table_covers_what_it_should() -> None:
    configs = [pair(name).ours.config for name in NAMES]
    assert {c.layer_types[0] for c in configs} == {ATTENTION, CONV}
    assert {frozenset(c.layer_types) for c in configs} == {
        frozenset({ATTENTION}), frozenset({CONV}), frozenset({ATTENTION, CONV})
    }  # fmt: skip
    assert {c.heads // c.kv_heads for c in configs} == {1, 2, 4}
    assert {c.kernel for c in configs} == {2, 3, 4, 5}
    assert {c.tied for c in configs} == {c.conv_bias for c in configs} == {True, False}
