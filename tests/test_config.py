"""config.json in its published spellings, and the sizes it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig, Experts
from lfm2_mm.errors import CheckpointDamaged
from tests.shapes import (
    NAMES,
    assert_close,
    folder,
    full,
    opened,
    pair,
    reference_at,
    reference_hidden,
    some_ids,
)

# The keys of the published files, in the spelling each generation of them uses.
TEXT: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_mlp_init_scale": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0,
    "block_use_swiglu": True,
    "block_use_xavier_init": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "eos_token_id": 7,
    "initializer_range": 0.02,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-05,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_pos_enc": True,
    "vocab_size": 65536,
}


def text(hidden: int, heads: int, layers: int, attention: list[int], **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "block_dim": hidden, "conv_dim": hidden, "conv_dim_out": hidden}
    sizes |= {"num_attention_heads": heads, "num_heads": heads, "num_hidden_layers": layers}
    return {**TEXT, **sizes, "full_attn_idxs": attention, **more}


def newer(raw: dict[str, Any]) -> dict[str, Any]:
    """The same in the spelling of LFM2.5 files: layer_types, rope_parameters, tie_embedding."""
    raw = dict(raw)
    attention, layers = raw.pop("full_attn_idxs"), raw["num_hidden_layers"]
    raw["layer_types"] = ["full_attention" if i in attention else "conv" for i in range(layers)]
    raw["rope_parameters"] = {"rope_theta": raw.pop("rope_theta"), "rope_type": "default"}
    return raw | {"tie_embedding": True, "dtype": raw.pop("torch_dtype")}


SIXTEEN = [2, 5, 8, 10, 12, 14]
PUBLISHED = {
    "LFM2-350M": text(1024, 16, 16, SIXTEEN, block_ff_dim=6656),
    "LFM2-700M": text(1536, 24, 16, SIXTEEN, block_ff_dim=10240),
    "LFM2-1.2B": text(2048, 32, 16, SIXTEEN, block_ff_dim=12288),
    "LFM2-2.6B": text(
        2048, 32, 30, [2, 5, 9, 13, 17, 21, 24, 27],
        block_ff_dim=10752, block_auto_adjust_ff_dim=False,
    ),
    "LFM2.5-230M": text(
        1024, 16, 14, [2, 4, 6, 8, 10, 12], block_ff_dim=2560, block_auto_adjust_ff_dim=False
    ),
    "LFM2-ColBERT-350M": text(1024, 16, 16, SIXTEEN, block_ff_dim=6656, vocab_size=64402),
    "LFM2-8B-A1B": {
        "architectures": ["Lfm2MoeForCausalLM"],
        "model_type": "lfm2_moe",
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "eos_token_id": 7,
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "layer_types": [
            "full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)
        ],
        "max_position_embeddings": 128000,
        "moe_intermediate_size": 1792,
        "norm_eps": 1e-05,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rope_theta": 1000000.0,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": True,
        "vocab_size": 65536,
    },
}  # fmt: skip
PARAMETERS = {
    "LFM2-350M": 354_483_968,
    "LFM2-700M": 742_489_344,
    "LFM2-1.2B": 1_170_340_608,
    "LFM2-2.6B": 2_569_272_320,
    "LFM2.5-230M": 229_693_184,
    "LFM2-ColBERT-350M": 353_322_752,  # of the trunk
    "LFM2-8B-A1B": 8_339_929_856,
}
WIDTHS = {"LFM2-350M": 4608, "LFM2-700M": 6912, "LFM2-1.2B": 8192, "LFM2-2.6B": 10752}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    config = BackboneConfig.from_json(PUBLISHED[name])
    with torch.device("meta"):
        assert Backbone(config).parameter_count() == PARAMETERS[name]
    assert config.head_dim == 64 and config.tied


@pytest.mark.parametrize("name", WIDTHS)
def test_width_of_the_feed_forward(name: str) -> None:
    assert BackboneConfig.from_json(PUBLISHED[name]).feed_forward == WIDTHS[name]


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n != "LFM2-8B-A1B"])
def test_spellings_mean_the_same(name: str) -> None:
    old = BackboneConfig.from_json(PUBLISHED[name])
    assert BackboneConfig.from_json(newer(PUBLISHED[name])) == old
    later = dict(PUBLISHED[name])
    later["intermediate_size"] = later.pop("block_ff_dim")
    assert BackboneConfig.from_json(later) == old
    both = PUBLISHED[name] | {"intermediate_size": 12345}  # block_ff_dim goes first
    assert BackboneConfig.from_json(both) == old


@pytest.mark.parametrize("name", ["LFM2-350M", "LFM2-2.6B", "LFM2-8B-A1B"])
def test_transformers_reads_the_same_sizes(name: str) -> None:
    """The number of weights of transformers' own model for the same file."""
    import transformers

    raw = PUBLISHED[name]
    moe = raw["model_type"] == "lfm2_moe"
    kind = transformers.Lfm2MoeConfig if moe else transformers.Lfm2Config
    model = transformers.Lfm2MoeModel if moe else transformers.Lfm2Model
    with torch.device("meta"):
        theirs = model(kind(**raw))
    assert sum(p.numel() for p in theirs.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_json_round_trip(name: str) -> None:
    config = BackboneConfig.from_json(PUBLISHED[name])
    assert BackboneConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip_of_odd_shapes(name: str) -> None:
    config = replace(pair(name).ours.config, rope_theta=123.0, norm_eps=1e-3, eos_token_id=5)
    assert BackboneConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", ["dense", "attention_only"])
def test_a_checkpoint_in_the_old_spelling(name: str, tmp_path: Path) -> None:
    """Same weights, another position base and untied or tied as the file says: all keys count."""
    path = tmp_path / name
    path.mkdir()
    (path / "model.safetensors").write_bytes((folder(name) / "model.safetensors").read_bytes())
    raw = json.loads((folder(name) / "config.json").read_text())
    types = raw.pop("layer_types")
    raw["full_attn_idxs"] = [i for i, kind in enumerate(types) if kind == "full_attention"]
    raw["tie_embedding"] = raw.pop("tie_word_embeddings")
    raw["block_ff_dim"] = raw.pop("block_ff_dim", None) or raw["intermediate_size"]
    raw["intermediate_size"] = 7
    raw.pop("rope_parameters")
    raw["rope_theta"] = 50.0
    (path / "config.json").write_text(json.dumps(raw))
    ours, reference, ids = opened(path), reference_at(path), some_ids(2, 9)
    hidden = full(ours, ids)
    assert_close(hidden, reference_hidden(reference, ids))
    assert_close(ours.logits(hidden), reference(input_ids=ids, use_cache=False).logits)
    assert (hidden - full(pair(name).ours, ids)).abs().max() > 0.1, "rope_theta was not read"


@pytest.mark.parametrize(
    ("change", "width"),
    [
        ({"block_ff_dim": 100, "block_multiple_of": 16}, 80),  # 66, rounded up
        ({"block_ff_dim": 96, "block_multiple_of": 16}, 64),  # exact
        ({"block_ff_dim": 96, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.3}, 96),
        ({"block_ff_dim": 96, "block_multiple_of": 16, "block_ffn_dim_multiplier": None}, 64),
        ({"block_ff_dim": 100, "block_ffn_dim_multiplier": None}, 66),
        ({"block_ff_dim": 100, "block_auto_adjust_ff_dim": False}, 100),
        ({"intermediate_size": 100, "block_auto_adjust_ff_dim": False}, 100),
    ],
    ids=str,
)
def test_rule_of_the_feed_forward(change: dict[str, Any], width: int) -> None:
    import transformers

    raw = text(64, 4, 1, [0], num_key_value_heads=2) | change
    assert BackboneConfig.from_json(raw).feed_forward == width
    with torch.device("meta"):
        theirs = transformers.Lfm2Model(transformers.Lfm2Config(**raw))
    assert theirs.layers[0].feed_forward.w1.out_features == width


def test_moe_settings_are_read() -> None:
    raw = PUBLISHED["LFM2-8B-A1B"] | {
        "use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 2.5
    }  # fmt: skip
    config = BackboneConfig.from_json(raw)
    assert config.experts == Experts(32, 4, 1792, 2, False, False, 2.5)
    assert [config.is_dense(i) for i in (0, 1, 2, 23)] == [True, True, False, False]


def test_token_ids_may_be_lists_or_null() -> None:
    raw = text(1024, 16, 1, [0], block_ff_dim=96) | {"eos_token_id": [7, 2], "pad_token_id": None}
    config = BackboneConfig.from_json(raw)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 7, 0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "llama"}, "llama.*lfm2"),
    "unknown layer": ({"layer_types": ["conv", "mamba"]}, "mamba.*full_attention"),
    "sliding attention": ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
    "no layers": ({"num_hidden_layers": 0}, "layer_types"),
    "scaled positions": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn.*default"),
    "rope as text": ({"rope_parameters": "default"}, "config.json"),
    "no hidden size": ({"hidden_size": None}, "config.json"),
    "a text for a number": ({"vocab_size": "many"}, "config.json"),
    "no heads": ({"num_attention_heads": 0}, "config.json|below 1"),
    "no key heads": ({"num_key_value_heads": 0}, "below 1"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "16 heads.*3 key heads"),
    "negative kernel": ({"conv_L_cache": -3}, "below 1"),
    "odd head": ({"head_dim": 63}, "63"),
    "a size beyond all": ({"hidden_size": 10**12}, "beyond 16,777,216"),
    "no number for a size": ({"conv_L_cache": float("nan")}, "no whole number"),
    "layers beyond all": ({"layer_types": None, "num_hidden_layers": 10**12}, "beyond 4,096"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointDamaged, match=says):
        BackboneConfig.from_json(PUBLISHED["LFM2-350M"] | change)


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads"]
)
def test_a_missing_key_is_named(key: str) -> None:
    raw = {k: v for k, v in PUBLISHED["LFM2-350M"].items() if k != key}
    with pytest.raises(CheckpointDamaged, match=key):
        BackboneConfig.from_json(raw)


@pytest.mark.parametrize("key", ["num_experts", "num_experts_per_tok", "moe_intermediate_size"])
def test_a_missing_key_of_a_mixture_is_named(key: str) -> None:
    raw = {k: v for k, v in PUBLISHED["LFM2-8B-A1B"].items() if k != key}
    with pytest.raises(CheckpointDamaged, match=key):
        BackboneConfig.from_json(raw)


@pytest.mark.parametrize("active", [0, 33])
def test_a_mixture_cannot_use_more_experts_than_it_has(active: int) -> None:
    with pytest.raises(CheckpointDamaged, match=f"{active}.*32"):
        BackboneConfig.from_json(PUBLISHED["LFM2-8B-A1B"] | {"num_experts_per_tok": active})
