"""The published speech configurations are read as they are, and written back as they were."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from audio.config import AudioConfig, DepthConfig, EncoderConfig, MelConfig
from lfm2_mm.errors import CheckpointDamaged

PUBLISHED: dict[str, Any] = {  # LFM2-Audio-1.5B
    "architectures": ["Lfm2AudioForConditionalGeneration"],
    "codebooks": 8,
    "tie_audio_embeddings": False,
    "semantic_codebook_factor": 100,
    "codebook_weight": "log",
    "interleaved_n_text": 6,
    "interleaved_n_audio": 12,
    "preprocessor": {
        "sample_rate": 16000,
        "normalize": "per_feature",
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": 128,
        "n_fft": 512,
        "log": True,
        "frame_splicing": 1,
        "dither": 1e-05,
        "pad_to": 0,
        "pad_value": 0.0,
    },
    "encoder": {
        "feat_in": 128,
        "feat_out": -1,
        "n_layers": 17,
        "d_model": 512,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": 256,
        "causal_downsampling": False,
        "reduction": None,
        "reduction_position": None,
        "reduction_factor": 1,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": 8,
        "att_context_size": [-1, -1],
        "xscaling": False,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": 9,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "dropout": 0.1,
        "dropout_pre_encoder": 0.1,
        "dropout_emb": 0.0,
        "dropout_att": 0.1,
    },
    "lfm": {
        "model_type": "lfm2",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "block_ff_dim": 12288,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "max_position_embeddings": 128000,
        "rope_theta": 1000000.0,
        "norm_eps": 1e-05,
        "conv_L_cache": 3,
    },
    "depthformer": {"layers": 6, "dim": 1024, "tie": True},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """PUBLISHED with one value in place of another, "part.key" or "key"."""
    raw = deepcopy(PUBLISHED)
    *parts, key = path.split(".")
    inner = raw
    for part in parts:
        inner = inner[part]
    inner[key] = value
    return raw


def test_the_published_numbers() -> None:
    config = AudioConfig.from_json(PUBLISHED)
    assert config.mel == MelConfig(16_000, 400, 160, 512, 128)
    assert config.encoder == EncoderConfig(128, 17, 512, 8, 2048, 9, 256, 8, 5000, False)
    assert config.depth == DepthConfig(6, 1024, 2816, True, 32, 8)
    assert config.backbone.feed_forward == 8192 and config.backbone.hidden_size == 2048
    assert config.end_frame == (2048,) * 8
    assert (config.n_text, config.n_audio) == (6, 12)


def test_the_japanese_one_takes_turns_otherwise() -> None:
    assert AudioConfig.from_json(changed("interleaved_n_audio", 9)).n_audio == 9


def test_unknown_keys_do_no_harm() -> None:
    raw = changed("encoder.something_new", 1) | {"transformers_version": "5.0"}
    assert AudioConfig.from_json(raw) == AudioConfig.from_json(PUBLISHED)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"n_text": 1, "n_audio": 2, "codebooks": 4, "codebook_size": 512, "text_pad": "<|pad|>"},
        {"depth": DepthConfig(2, 128, 256, False, 4, 2), "weighting": "linear", "text_loss": 0.3},
        {"encoder": EncoderConfig(80, 4, 144, 4, 288, 9, 32), "mel": MelConfig(features=80)},
    ],
    ids=["published", "small codebooks", "small depth", "small ears"],
)
def test_what_is_written_is_read_back(own: dict[str, Any]) -> None:
    published = AudioConfig.from_json(PUBLISHED)
    config = AudioConfig(**{"backbone": published.backbone, "depth": published.depth, **own})
    assert AudioConfig.from_json(config.to_json()) == config


def test_published_keys_are_written_and_no_other_where_nothing_differs() -> None:
    raw = AudioConfig.from_json(PUBLISHED).to_json()
    for part in ("preprocessor", "encoder", "depthformer"):
        assert raw[part] == PUBLISHED[part]
    assert set(raw) - set(PUBLISHED) == {"text_loss_multiplier", "audio_loss_multiplier"}


def test_codebook_weights_fall_from_the_factor_to_one() -> None:
    weights = AudioConfig.from_json(PUBLISHED).codebook_weights
    assert weights[0] == pytest.approx(100) and weights[-1] == pytest.approx(1)
    assert weights[3] == pytest.approx(100 ** (4 / 7))
    linear = AudioConfig.from_json(changed("codebook_weight", "linear"))
    assert linear.codebook_weights == (100, *(1.0,) * 7)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("preprocessor.normalize", "all_features", "preprocessor.normalize is 'all_features'"),
        ("preprocessor.window_size", 0.0251234, "not a whole number"),
        ("encoder.subsampling", "striding", "encoder.subsampling is 'striding'"),
        ("encoder.att_context_size", [70, 13], "att_context_size"),
        ("encoder.feat_in", 80, "reads 80 features"),
        ("depthformer", {"layers": 6, "dim": 1024}, "lacks 'tie'"),
        ("depthformer.dim", 48, "width 48"),
        ("lfm", {"vocab_size": 3}, "lacks"),
        ("codebooks", 0, "below 1"),
        ("codebooks", "eight", "no size"),
        ("interleaved_n_text", 0, "below 1"),
        ("codebook_weight", "square", "codebook_weight"),
    ],
)
def test_what_cannot_be_is_told(path: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointDamaged, match=message):
        AudioConfig.from_json(changed(path, value))
