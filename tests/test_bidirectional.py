"""The bidirectional mode of LFM2.5-ColBERT against a reference in plain lines, and batched = alone.

transformers 5.3.0 has no class for it; the reference below shares no code with the product.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig, Experts
from tests.shapes import MASKS, assert_close, full, opened, padded, pair, some_ids


@pytest.mark.parametrize("name", ["dense", "kernel_two", "conv_only", "attention_only", "moe"])
class TestBidirectional:
    """Every token sees every real token, and the convolution looks to both sides."""

    def test_equals_the_plain_reference(self, name: str) -> None:
        ours, weights = opened_bidirectional(name)
        for length in (1, 2, 3, 9):
            ids = some_ids(2, length, seed=length)
            real = torch.ones(2, length, dtype=torch.bool)
            expected = plain_bidirectional(ours.config, weights, ids, real, convolve_padding=False)
            assert_close(full(ours, ids), expected)

    @pytest.mark.parametrize("convolve_padding", [False, True])
    def test_right_padding_equals_the_plain_reference(
        self, name: str, convolve_padding: bool
    ) -> None:
        ours, weights = opened_bidirectional(name)
        rows = [some_ids(n, seed=n) for n in (4, 1, 7)]
        ids, mask = padded(rows, [[1, 1, 1, 1, 0, 0, 0], [1] + [0] * 6, [1] * 7])
        actual = ours(ours.embed(ids), mask, convolve_padding=convolve_padding)
        expected = plain_bidirectional(ours.config, weights, ids, mask, convolve_padding)
        assert_close(actual[mask], expected[mask])
        if convolve_padding:  # the vectors of a query's expansion are used too
            assert_close(actual, expected)

    @pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
    def test_batched_equals_alone(self, name: str, masks: list[list[int]]) -> None:
        ours, _ = opened_bidirectional(name)
        rows = [some_ids(sum(mask), seed=i) for i, mask in enumerate(masks)]
        ids, mask = padded(rows, masks)
        hidden = ours(ours.embed(ids), mask)
        for row, real, alone in zip(hidden, mask, rows, strict=True):
            if len(alone):
                assert_close(row[real], full(ours, alone[None])[0])

    def test_the_future_matters(self, name: str) -> None:
        ours, _ = opened_bidirectional(name)
        ids = some_ids(1, 6)
        other = torch.cat([ids[:, :5], some_ids(1, 1, seed=5)], 1)
        moved = (full(ours, ids) - full(ours, other)).abs().amax((0, 2))
        assert (moved > 1e-3).all()  # three centred convolutions of kernel 5 reach back that far

    def test_has_no_state(self, name: str) -> None:
        ours, _ = opened_bidirectional(name)
        with pytest.raises(ValueError, match="forward"):
            ours.step(ours.embed(some_ids(1, 3)))


def opened_bidirectional(name: str) -> tuple[Backbone, dict[str, Tensor]]:
    ours = opened(name, bidirectional=True)
    return ours, pair(name).reference.model.state_dict()


@torch.no_grad()
def plain_bidirectional(
    config: BackboneConfig,
    weights: dict[str, Tensor],
    ids: Tensor,
    real: Tensor,
    convolve_padding: bool,
) -> Tensor:
    """LFM2.5-ColBERT's trunk in plain lines over transformers' weights, made of loops."""

    def norm(x: Tensor, key: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[key]

    x = weights["embed_tokens.weight"][ids]
    for i, kind in enumerate(config.layer_types):
        at = f"layers.{i}."
        normed = norm(x, at + "operator_norm.weight")
        if kind == "conv":
            inputs = normed if convolve_padding else normed * real[..., None]
            x = x + plain_convolution(weights, at + "conv.", inputs)
        else:
            x = x + plain_attention(config, weights, at + "self_attn.", normed, real, norm)
        normed = norm(x, at + "ffn_norm.weight")
        x = x + plain_feed_forward(config, weights, at + "feed_forward.", normed, i)
    return norm(x, "embedding_norm.weight")


def plain_convolution(weights: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    before, after, x = (x @ weights[at + "in_proj.weight"].T).chunk(3, -1)
    u, taps = before * x, weights[at + "conv.weight"][:, 0]  # taps (hidden, kernel)
    kernel, length = taps.shape[1], u.shape[1]
    y = torch.zeros_like(u)
    for t in range(length):
        for k in range(kernel):
            source = t + k - kernel // 2  # k // 2 zeros on both sides, the output trimmed
            if 0 <= source < length:
                y[:, t] += u[:, source] * taps[:, k]
    return (after * y) @ weights[at + "out_proj.weight"].T


def plain_attention(
    config: BackboneConfig, weights: dict[str, Tensor], at: str, x: Tensor, real: Tensor, norm: Any
) -> Tensor:
    batch, length, _ = x.shape
    dim, group = config.head_dim, config.heads // config.kv_heads

    def heads(key: str) -> Tensor:
        return (x @ weights[at + key].T).view(batch, length, -1, dim)

    def turned(v: Tensor) -> Tensor:
        angles = torch.arange(length)[:, None] / config.rope_theta ** (
            torch.arange(0, dim, 2) / dim
        )
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = v[..., : dim // 2], v[..., dim // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q = turned(norm(heads("q_proj.weight"), at + "q_layernorm.weight"))
    k = turned(norm(heads("k_proj.weight"), at + "k_layernorm.weight"))
    v = heads("v_proj.weight")
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(config.heads):
            scores = q[b, :, h] @ k[b, :, h // group].T / dim**0.5
            scores = scores + torch.where(real[b], 0.0, -1e9)
            out[b, :, h] = scores.softmax(-1) @ v[b, :, h // group]
    return out.flatten(2) @ weights[at + "out_proj.weight"].T


def plain_feed_forward(
    config: BackboneConfig, weights: dict[str, Tensor], at: str, x: Tensor, layer: int
) -> Tensor:
    if config.is_dense(layer):
        gate, up, down = (weights[f"{at}w{n}.weight"] for n in (1, 3, 2))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    experts = config.experts
    assert isinstance(experts, Experts) and experts.normalise and experts.use_bias
    scores = (x @ weights[at + "gate.weight"].T).sigmoid()
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            ranked = scores[b, t] + weights[at + "expert_bias"]
            chosen = ranked.argsort(descending=True)[: experts.active].tolist()
            total = scores[b, t, chosen].sum() + 1e-6
            for e in chosen:
                gate, up = (weights[at + "experts.gate_up_proj"][e] @ x[b, t]).chunk(2)
                y = weights[at + "experts.down_proj"][e] @ (F.silu(gate) * up)
                out[b, t] += y * scores[b, t, e] / total * experts.scale
    return out
