"""Frame generation step by step equals one pass over the whole frame; the rows turn the right way.

Equality with the published model itself is in test_speech_golden.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from audio.config import AudioConfig, DepthConfig
from audio.depth import DepthTransformer, FrameEmbedding
from audio.loading import load_mouth, published_depth
from lfm2_mm.device import choose
from lfm2_mm.errors import CheckpointDamaged
from tests import tiny_audio

SMALL = {**tiny_audio.CONFIG, **tiny_audio.SMALL}


def config_of(**settings: Any) -> AudioConfig:
    return AudioConfig.from_json({**SMALL, **settings})


def tensors_of(config: AudioConfig, seed: int = 0) -> dict[str, Tensor]:
    raw = config.to_json()
    shapes = tiny_audio.mouth_shapes(raw)
    return {k: torch.from_numpy(tiny_audio.drawn(k, s, seed)) for k, s in shapes.items()}


def mouth(config: AudioConfig, dtype: str = "fp32") -> tuple[FrameEmbedding, DepthTransformer]:
    return load_mouth(config, tensors_of(config).items(), choose("cpu", dtype))


class Greedy:
    """Takes the largest logit, or the code it is told to, and keeps what it saw."""

    def __init__(self, told: Sequence[int] = ()) -> None:
        self.told = iter(told)
        self.seen: list[Tensor] = []

    def __call__(self, logits: Tensor) -> int:
        self.seen.append(logits.clone())
        return next(self.told, int(logits.argmax()))


def hidden_of(config: AudioConfig, count: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.backbone.hidden_size, generator=generator)


@pytest.mark.parametrize("codebooks", [1, 2, 8])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_step_by_step_is_the_whole_pass(codebooks: int, tie: bool) -> None:
    config = config_of(codebooks=codebooks, depthformer={**SMALL["depthformer"], "tie": tie})
    _, depth = mouth(config)
    hidden = hidden_of(config, 5)
    frames, logits = [], []
    for row in hidden:
        greedy = Greedy()
        frames.append(depth.frame(row, greedy))
        logits.append(torch.stack(greedy.seen))
    whole = depth(hidden, torch.tensor(frames))
    assert whole.shape == (5, codebooks, config.codebook_size + 1)
    torch.testing.assert_close(whole, torch.stack(logits), atol=2e-5, rtol=0)


def test_the_end_code_can_be_chosen_and_fed_back() -> None:
    config = config_of()
    _, depth = mouth(config)
    greedy = Greedy(config.end_frame)
    assert depth.frame(hidden_of(config, 1)[0], greedy) == config.end_frame
    whole = depth(hidden_of(config, 1), torch.tensor([config.end_frame]))
    torch.testing.assert_close(whole[0], torch.stack(greedy.seen), atol=2e-5, rtol=0)


def test_a_frame_depends_on_its_hidden_state_alone() -> None:
    config = config_of()
    _, depth = mouth(config)
    first, second = hidden_of(config, 2)
    fresh = depth.frame(second, Greedy())
    depth.frame(first, Greedy())
    assert depth.frame(second, Greedy()) == fresh


def test_a_code_changes_what_follows_and_nothing_before() -> None:
    config = config_of()
    _, depth = mouth(config)
    hidden = hidden_of(config, 1)
    one, other = depth(hidden, torch.tensor([[1, 2, 3]])), depth(hidden, torch.tensor([[1, 9, 3]]))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2], other[:, 2])


def by_hand(config: AudioConfig, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published layers over (positions, width), with complex rotation of neighbours."""
    depth = config.depth
    dim = depth.width // depth.heads

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    def rotate(x: Tensor) -> Tensor:  # (positions, heads, dim)
        angles = torch.arange(len(x))[:, None] / 1e6 ** (torch.arange(0, dim, 2) / dim)
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(
            2
        )

    for layer in range(depth.layers):
        w = {
            key.removeprefix(f"depthformer.layers.{layer}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"depthformer.layers.{layer}.")
        }
        qkv = norm(x, w["operator_norm.weight"]) @ w["operator.qkv_proj.weight"].T
        q, k, v = (
            part.unflatten(-1, (-1, dim))
            for part in qkv.split([depth.heads * dim, *[depth.kv_heads * dim] * 2], -1)
        )
        at = "operator.bounded_attention."
        q = rotate(norm(q, w[at + "q_layernorm.weight"]))
        k = rotate(norm(k, w[at + "k_layernorm.weight"]))
        k, v = (t.repeat_interleave(depth.heads // depth.kv_heads, 1) for t in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / dim**0.5
        scores += torch.full_like(scores, -torch.inf).triu(1)
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ w["operator.out_proj.weight"].T
        y = norm(x, w["ffn_norm.weight"])
        gate = torch.nn.functional.silu(y @ w["feed_forward.w1.weight"].T)
        x = x + (gate * (y @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return x


def test_the_layers_are_the_published_ones_written_out() -> None:
    config = config_of(codebooks=5)
    tensors = tensors_of(config)
    _, depth = mouth(config)
    hidden, codes = hidden_of(config, 1), torch.tensor([[7, 0, 40, 3, 3]])
    x = (hidden @ tensors["depth_linear.weight"].T + tensors["depth_linear.bias"]).view(5, -1)
    for book in range(4):
        x[book + 1] += tensors[f"depth_embeddings.{book}.embedding.weight"][codes[0, book]]
    out = by_hand(config, tensors, x)
    for book, row in enumerate(depth(hidden, codes)[0]):
        norm = tensors[f"depth_embeddings.{book}.embedding_norm.weight"]
        normed = torch.nn.functional.rms_norm(out[book], norm.shape, norm, 1e-5)
        wanted = tensors[f"depth_embeddings.{book}.embedding.weight"] @ normed
        torch.testing.assert_close(row, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_what_was_loaded_is_saved_as_it_was(tie: bool) -> None:
    config = config_of(depthformer={**SMALL["depthformer"], "tie": tie})
    tensors = tensors_of(config)
    frames, depth = mouth(config)
    saved = published_depth(depth) | {"audio_embedding.embedding.weight": frames.weight}
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[key], tensors[key]) for key in tensors)


def test_every_weight_learns() -> None:
    config = config_of(depthformer={**SMALL["depthformer"], "tie": False})
    _, depth = mouth(config)
    depth.requires_grad_(True)
    hidden = hidden_of(config, 4).requires_grad_()
    depth(hidden, torch.randint(0, 40, (4, 3))).square().mean().backward()
    last = {"heads.2.embedding"}  # of the last codebook nothing is fed back
    still = {n for n, p in depth.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == last
    assert hidden.grad is not None and hidden.grad.any()


def test_int8_stays_near() -> None:
    config = config_of()
    (_, exact), (_, packed) = mouth(config), mouth(config, "int8")
    wanted, found = Greedy((1, 2, 3)), Greedy((1, 2, 3))
    exact.frame(hidden_of(config, 1)[0], wanted)
    packed.frame(hidden_of(config, 1)[0], found)
    spread = torch.stack(wanted.seen).std()
    assert (torch.stack(found.seen) - torch.stack(wanted.seen)).abs().max() < 0.15 * spread


WIDE = {"layers": 3, "dim": 64, "tie": True, "heads": 4, "kv_heads": 2, "ff": 112}


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_compiled_layers_are_the_modules(weights: str) -> None:
    """One call a position: what differs is the order of sums, so a value between two int8 levels
    may round the other way."""
    config = config_of(codebooks=6, depthformer=WIDE)
    _, fused = mouth(config, weights)
    _, plain = mouth(config, weights)
    plain._stack = None
    for row in hidden_of(config, 4):
        told = (3, 40, 0, 39, 7, 1)
        wanted, found = Greedy(told), Greedy(told)
        plain.frame(row, wanted)
        fused.frame(row, found)
        if fused._stack is None:
            pytest.skip("this processor has no byte products: nothing is compiled")
        difference = (torch.stack(found.seen) - torch.stack(wanted.seen)).abs()
        assert difference.max() < 0.03 * torch.stack(wanted.seen).std()
        assert difference.median() < 0.003


def test_frames_at_once_do_not_meet() -> None:
    config = config_of(codebooks=6, depthformer=WIDE)
    _, depth = mouth(config, "int8")
    rows = hidden_of(config, 40)
    alone = [depth.frame(row, Greedy()) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: depth.frame(row, Greedy()), rows))
    assert together == alone


def test_int8_weights_cannot_be_saved() -> None:
    with pytest.raises(ValueError, match="dtype='fp32'"):
        published_depth(mouth(config_of(), "int8")[1])


def test_frames_are_the_sum_of_a_row_a_codebook() -> None:
    config = config_of()
    frames, _ = mouth(config)
    codes = torch.tensor([[[0, 40, 7], [39, 0, 40]]])
    rows = frames.weight.view(3, 41, -1)
    wanted = rows[0, codes[..., 0]] + rows[1, codes[..., 1]] + rows[2, codes[..., 2]]
    torch.testing.assert_close(frames(codes), wanted)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
def test_any_number_of_heads_that_divides(heads: int) -> None:
    depth = DepthConfig(1, 32, 48, True, heads, 1)
    config = replace(config_of(), depth=depth)
    assert len(mouth(config)[1].frame(hidden_of(config, 1)[0], Greedy())) == 3


def test_a_tied_copy_must_be_the_embedding() -> None:
    config = config_of()
    tensors = tensors_of(config)
    copy = tensors["depth_embeddings.1.embedding.weight"].clone()
    tensors["depth_embeddings.1.to_logits.weight"] = copy
    load_mouth(config, tensors.items(), choose("cpu", "fp32"))
    copy[3, 3] += 1e-3
    with pytest.raises(CheckpointDamaged, match=r"depth_embeddings\.1\.to_logits\.weight differs"):
        load_mouth(config, tensors.items(), choose("cpu", "fp32"))
