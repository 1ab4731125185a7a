"""Ears: equal to transformers' Parakeet and to the published names; padding changes nothing."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audio.config import AudioConfig, MelConfig
from audio.conformer import by_distance
from audio.encoder import MAX_SECONDS, AudioEncoder, load_encoder, published_encoder
from audio.mel import log_mel
from audio.resample import resample
from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput, CheckpointDamaged
from tests import tiny_audio
from tests.golden.parts import CLIPS, EVERY

LENGTHS = [1, 2, 8, 9, 10, 16, 17, 24, 25, 101]
FP32, BF16, INT8 = (Choice("cpu", weights, 1, "") for weights in ("fp32", "bf16", "int8"))
KEYS = (  # published -> transformers, in this order
    ("conformer.", ""),
    ("pre_encode.conv.", "subsampling.layers."),
    ("pre_encode.out.", "subsampling.linear."),
    ("linear_pos", "relative_k_proj"),
    ("linear_q", "q_proj"),
    ("linear_k", "k_proj"),
    ("linear_v", "v_proj"),
    ("linear_out", "o_proj"),
    ("pos_bias_u", "bias_u"),
    ("pos_bias_v", "bias_v"),
    ("conv.batch_norm.", "conv.norm."),
)
# fp32: the same sums in another order; outputs reach 3, up to 1e-6 was seen.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@functools.cache
def published() -> dict[str, Tensor]:
    tensors = tiny_audio.speech_tensors(tiny_audio.CONFIG, 0)
    ears = ("conformer.", "audio_adapter.")
    return {k: torch.from_numpy(t) for k, t in tensors.items() if k.startswith(ears)}


@functools.cache
def encoder(choice: Choice = FP32) -> AudioEncoder:
    return load_encoder(AudioConfig.from_json(tiny_audio.CONFIG), published().items(), choice)


@functools.cache
def reference() -> Any:
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

    config = ParakeetEncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=128, num_mel_bins=128, subsampling_conv_channels=8, scale_input=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = ParakeetEncoder(config).eval()
    named = {}
    for key, tensor in published().items():
        if key.startswith("conformer."):
            for ours, theirs in KEYS:
                key = key.replace(ours, theirs)
            named[key] = tensor
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert not unexpected and all("num_batches_tracked" in key for key in missing)
    return model


def mel(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(frames, 128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", LENGTHS)
@torch.no_grad()
def test_the_conformer_equals_parakeet(frames: int) -> None:
    ours, _ = encoder().conformer(mel(frames)[None])
    assert ours.shape == (1, -(-frames // 8), 32)
    expected = reference()(mel(frames)[None]).last_hidden_state
    torch.testing.assert_close(ours, expected, **CLOSE)


@torch.no_grad()
def test_the_adapter_is_norm_linear_gelu_linear() -> None:
    at = {k.removeprefix("audio_adapter.model."): t for k, t in published().items()}
    x, _ = encoder().conformer(mel(50)[None])
    x = torch.nn.functional.layer_norm(x, (32,), at["0.weight"], at["0.bias"])
    x = torch.nn.functional.gelu(x @ at["1.weight"].T + at["1.bias"])
    torch.testing.assert_close(encoder().hear(mel(50)), (x @ at["3.weight"].T + at["3.bias"])[0])


@pytest.mark.parametrize("name", CLIPS)
@torch.no_grad()
def test_the_ears_equal_the_reference(name: str) -> None:
    """From samples to embeddings, beside liquid-audio (tests/golden/README.md)."""
    seconds, rate, seed = CLIPS[name]
    golden = np.load(Path(__file__).parent / "golden/parts.npz")
    samples = resample(tiny_audio.recording(seconds, rate, seed), rate, 16_000)
    frames = log_mel(samples, MelConfig())
    heard = encoder().conformer(frames[None])[0][0]
    np.testing.assert_allclose(heard[::EVERY], golden[f"{name}/conformer"], atol=5e-4)
    np.testing.assert_allclose(
        encoder().hear(frames)[::EVERY], golden[f"{name}/adapter"], atol=5e-4
    )


@torch.no_grad()
def test_rows_of_a_batch_equal_each_alone() -> None:
    """Noise stands at the padding."""
    batch = mel(len(LENGTHS) * 101, seed=3).view(len(LENGTHS), 101, 128)
    clips = [mel(frames, seed=frames) for frames in LENGTHS]
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    out, lengths = encoder()(batch, torch.tensor(LENGTHS))
    assert lengths.tolist() == [-(-frames // 8) for frames in LENGTHS]
    assert torch.isfinite(out).all()
    for row, length, clip in zip(out, lengths, clips, strict=True):
        torch.testing.assert_close(row[:length], encoder().hear(clip), **CLOSE)


@pytest.mark.parametrize(("choice", "error"), [(BF16, 0.05), (INT8, 0.1)], ids=["bf16", "int8"])
def test_smaller_numbers_stay_near(choice: Choice, error: float) -> None:
    """Relative error of the whole; 0.015 and 0.03 at random weights of the published shape."""
    exact = encoder().hear(mel(200))
    near = encoder(choice).hear(mel(200)).float()
    assert 0 < (near - exact).norm() < error * exact.norm()


def test_gradients_reach_every_weight() -> None:
    fresh = AudioEncoder(AudioConfig.from_json(tiny_audio.CONFIG))
    out, _ = fresh(mel(60).view(2, 30, 128), torch.tensor([30, 17]))
    out.square().mean().backward()
    without = [n for n, p in fresh.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before batch normalisation in training is taken out again by its mean.
    assert without in ([], ["conformer.layers.0.conv.depthwise_conv.bias"])


def test_by_distance_takes_the_column_of_each_distance() -> None:
    time = 5
    columns = torch.arange(time - 1, -time, -1.0).expand(2, 3, time, -1)
    got = by_distance(columns)
    places = torch.arange(time)
    assert torch.equal(got[1, 2], (places[:, None] - places).float())


def test_published_names_come_back() -> None:
    back = published_encoder(encoder())
    assert back.keys() == published().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in published().items())
    with pytest.raises(ValueError, match="int8"):
        published_encoder(encoder(INT8))


def test_counters_of_training_are_ignored() -> None:
    counter = ("conformer.layers.0.conv.batch_norm.num_batches_tracked", torch.tensor(100))
    config = AudioConfig.from_json(tiny_audio.CONFIG)
    again = load_encoder(config, [*published().items(), counter], FP32)
    assert torch.equal(again.hear(mel(20)), encoder().hear(mel(20)))


def damaged(change: str) -> dict[str, Tensor]:
    tensors = dict(published())
    key = "conformer.layers.1.conv.pointwise_conv1.weight"
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        tensors["conformer.extra"] = torch.zeros(1)
    elif change == "shape":
        tensors[key] = tensors[key].squeeze(-1)
    else:
        tensors[key] = tensors[key] * torch.nan
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [("missing", "lack"), ("unexpected", "extra"), ("shape", "shape"), ("nan", "NaN")],
)
def test_damaged_weights_are_refused(change: str, says: str) -> None:
    config = AudioConfig.from_json(tiny_audio.CONFIG)
    with pytest.raises(CheckpointDamaged, match=says):
        load_encoder(config, damaged(change).items(), FP32)


def test_what_is_too_long_is_told_before_it_is_heard() -> None:
    with pytest.raises(BadInput, match=rf"lasts 200 s; at most {MAX_SECONDS} s"):
        encoder().hear(torch.zeros(20_000, 128))
    config = AudioConfig.from_json(tiny_audio.CONFIG)
    short = AudioEncoder(replace(config, encoder=replace(config.encoder, max_positions=100)))
    with pytest.raises(BadInput, match="at most 8 s"):
        short.hear(torch.zeros(1_000, 128))
    assert encoder().hear(torch.zeros(12_001, 128)).shape == (1501, 64)
