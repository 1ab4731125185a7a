"""Tiny random speech checkpoints in the published layout. Knows none of our code.

The weights come from numpy's RandomState, whose stream is frozen, seeded by each tensor's own name:
the same folder can be made again anywhere, so golden numbers need no weights beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from safetensors.numpy import save_file

from tests import tiny

AUDIO_START, TEXT_END, IM_END = 128, 130, 7
NAMED = {AUDIO_START: "<|audio_start|>", TEXT_END: "<|text_end|>"}
SPECIALS = tuple(
    tiny.NAMED_SPECIALS[i]
    if i < len(tiny.NAMED_SPECIALS)
    else NAMED.get(i, f"<|reserved_{i - 10}|>")
    for i in range(136)
)
VOCAB = 480

MEL: dict[str, Any] = {
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
}
ENCODER: dict[str, Any] = {
    "feat_in": 128,
    "feat_out": -1,
    "n_layers": 2,
    "d_model": 32,
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_conv_channels": 8,
    "causal_downsampling": False,
    "reduction": None,
    "reduction_position": None,
    "reduction_factor": 1,
    "ff_expansion_factor": 4,
    "self_attention_model": "rel_pos",
    "n_heads": 4,
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
}
LFM: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "block_ff_dim": 96,
    "intermediate_size": 96,
    "block_auto_adjust_ff_dim": False,
    "max_position_embeddings": 4096,
    "rope_theta": 1000000.0,
    "norm_eps": 1e-05,
    "conv_L_cache": 3,
    "conv_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
CONFIG: dict[str, Any] = {  # exactly the keys that the reference takes
    "architectures": ["Lfm2AudioForConditionalGeneration"],
    "codebooks": 8,
    "tie_audio_embeddings": False,
    "semantic_codebook_factor": 100,
    "codebook_weight": "log",
    "interleaved_n_text": 6,
    "interleaved_n_audio": 12,
    "preprocessor": MEL,
    "encoder": ENCODER,
    "lfm": LFM,
    "depthformer": {"layers": 2, "dim": 64, "tie": True},
}
SMALL: dict[str, Any] = {  # sizes that only we read: fast tests, a bundled checkpoint's kind
    "codebooks": 3,
    "codebook_size": 40,
    "depthformer": {"layers": 2, "dim": 32, "tie": True, "heads": 4, "kv_heads": 2, "ff": 48},
}
# How much louder some rows of the output matrices are, so that greedy decoding meets them now and
# then: without that no random model would ever end its text or its audio.
LOUD_TOKENS = {AUDIO_START: 1.5, TEXT_END: 1.5, IM_END: 1.5}
LOUD_END = 1.5


def speech_folder(
    path: Path | str,
    *,
    seed: int = 0,
    stored_copies: bool = False,
    loud: Mapping[int, float] | None = None,
    loud_end: float = LOUD_END,
    **settings: Any,
) -> Path:
    """Write config.json, model.safetensors and a tokenizer; `settings` override CONFIG's keys.

    `stored_copies` adds what LFM2-Audio-1.5B stores although nothing needs it: tied copies, unused
    tensors, and the buffers.
    """
    path = Path(path)
    config = {**CONFIG, **settings}
    tiny.tokenizer_files(path, specials=SPECIALS)
    tiny.write_json(path / "config.json", config)
    tensors = speech_tensors(config, seed)
    embedding = tensors["lfm.embed_tokens.weight"]
    for token, gain in {**LOUD_TOKENS, **(loud or {})}.items():
        embedding[token] *= gain
    tensors["depth_embeddings.0.embedding.weight"][-1] *= loud_end
    if stored_copies:
        tensors |= _copies(config, tensors, seed)
    save_file({k: np.ascontiguousarray(t) for k, t in tensors.items()}, path / "model.safetensors")
    return path


def speech_tensors(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Every tensor of model.safetensors that is used, float32."""
    shapes = {**lfm_shapes(config["lfm"]), **ears_shapes(config), **mouth_shapes(config)}
    return {key: drawn(key, shape, seed) for key, shape in shapes.items()}


def drawn(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Matrices of gain about 1, norms about 1, biases not 0, variances positive."""
    random = np.random.RandomState(crc32(f"{seed}/{key}".encode()))
    noise = random.standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        return 1 + 0.3 * np.abs(noise)
    if "norm" in key and key.endswith(".weight"):
        return 1 + 0.2 * noise
    if key.endswith(("bias", "running_mean")) or "pos_bias" in key:
        return 0.2 * noise
    if "embed_tokens" in key or key.startswith("audio_embedding"):
        return noise * np.float32(0.1)
    fan_in = int(np.prod(shape[1:])) or 1
    return noise * np.float32(fan_in**-0.5)


def lfm_shapes(lfm: Mapping[str, Any], prefix: str = "lfm.") -> dict[str, tuple[int, ...]]:
    hidden, width = lfm["hidden_size"], lfm["block_ff_dim"]
    head = hidden // lfm["num_attention_heads"]
    kv = head * lfm["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (lfm["vocab_size"], hidden)}
    for layer, kind in enumerate(lfm["layer_types"]):
        own: dict[str, tuple[int, ...]] = {
            "operator_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,),
            "feed_forward.w1.weight": (width, hidden),
            "feed_forward.w3.weight": (width, hidden),
            "feed_forward.w2.weight": (hidden, width),
        }
        if kind == "conv":
            own |= {
                "conv.conv.weight": (hidden, 1, lfm["conv_L_cache"]),
                "conv.in_proj.weight": (3 * hidden, hidden),
                "conv.out_proj.weight": (hidden, hidden),
            }
        else:
            own |= {
                "self_attn.q_proj.weight": (hidden, hidden),
                "self_attn.k_proj.weight": (kv, hidden),
                "self_attn.v_proj.weight": (kv, hidden),
                "self_attn.out_proj.weight": (hidden, hidden),
                "self_attn.q_layernorm.weight": (head,),
                "self_attn.k_layernorm.weight": (head,),
            }
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
    shapes["embedding_norm.weight"] = (hidden,)
    return {prefix + name: shape for name, shape in shapes.items()}


def ears_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """conformer.* and audio_adapter.*"""
    encoder, hidden = config["encoder"], config["lfm"]["hidden_size"]
    width, channels = encoder["d_model"], encoder["subsampling_conv_channels"]
    shapes = _with_bias(
        "conformer.pre_encode.",
        {
            "conv.0": (channels, 1, 3, 3),
            "conv.2": (channels, 1, 3, 3),
            "conv.3": (channels, channels, 1, 1),
            "conv.5": (channels, 1, 3, 3),
            "conv.6": (channels, channels, 1, 1),
            "out": (width, channels * -(-encoder["feat_in"] // 8)),
        },
    )
    for layer in range(encoder["n_layers"]):
        shapes |= _conformer_layer(f"conformer.layers.{layer}.", encoder)
    return shapes | _with_bias(
        "audio_adapter.model.",
        {"0": (width,), "1": (hidden, width), "3": (hidden, hidden)},
    )


def _conformer_layer(at: str, encoder: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, kernel, heads = encoder["d_model"], encoder["conv_kernel_size"], encoder["n_heads"]
    wide = width * encoder["ff_expansion_factor"]
    norms = ("feed_forward1", "self_att", "conv", "feed_forward2", "out")
    shapes = _with_bias(
        at,
        {f"norm_{name}": (width,) for name in norms}
        | {f"feed_forward{n}.linear1": (wide, width) for n in (1, 2)}
        | {f"feed_forward{n}.linear2": (width, wide) for n in (1, 2)}
        | {f"self_attn.linear_{name}": (width, width) for name in ("q", "k", "v", "out")}
        | {
            "conv.pointwise_conv1": (2 * width, width, 1),
            "conv.depthwise_conv": (width, 1, kernel),
            "conv.batch_norm": (width,),
            "conv.pointwise_conv2": (width, width, 1),
        },
    )
    return shapes | {
        at + "self_attn.linear_pos.weight": (width, width),
        at + "self_attn.pos_bias_u": (heads, width // heads),
        at + "self_attn.pos_bias_v": (heads, width // heads),
        at + "conv.batch_norm.running_mean": (width,),
        at + "conv.batch_norm.running_var": (width,),
    }


def mouth_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """audio_embedding, depth_linear, depthformer.* and depth_embeddings.*"""
    hidden, books = config["lfm"]["hidden_size"], config["codebooks"]
    rows = config.get("codebook_size", 2048) + 1
    depth = config["depthformer"]
    width, heads, kv = depth["dim"], depth.get("heads", 32), depth.get("kv_heads", 8)
    wide = depth.get("ff", 256 * -(-int(8 * width / 3) // 256))
    shapes: dict[str, tuple[int, ...]] = {
        "audio_embedding.embedding.weight": (books * rows, hidden),
        "depth_linear.weight": (books * width, hidden),
        "depth_linear.bias": (books * width,),
    }
    for layer in range(depth["layers"]):
        at, head = f"depthformer.layers.{layer}.", width // heads
        shapes |= {
            at + "operator_norm.weight": (width,),
            at + "ffn_norm.weight": (width,),
            at + "operator.qkv_proj.weight": (width + 2 * kv * head, width),
            at + "operator.out_proj.weight": (width, width),
            at + "operator.bounded_attention.q_layernorm.weight": (head,),
            at + "operator.bounded_attention.k_layernorm.weight": (head,),
            at + "feed_forward.w1.weight": (wide, width),
            at + "feed_forward.w3.weight": (wide, width),
            at + "feed_forward.w2.weight": (width, wide),
        }
    for book in range(books):
        at = f"depth_embeddings.{book}."
        shapes |= {at + "embedding.weight": (rows, width), at + "embedding_norm.weight": (width,)}
        if not depth["tie"]:
            shapes[at + "to_logits.weight"] = (rows, width)
    return shapes


def recording(seconds: float, rate: int, seed: int) -> np.ndarray:
    """(n,) float32: gliding tones that come and go, and noise."""
    random = np.random.RandomState(seed)
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.01 * random.standard_normal(len(t))
    for _ in range(4):
        start, glide, beat, phase = random.uniform((100, -200, 1, 0), (2000, 200, 6, 6))
        loudness = 0.2 * np.sin(beat * t + phase) ** 2
        wave += loudness * np.sin(2 * np.pi * (start + glide * t) * t)
    return wave.astype(np.float32)


def _copies(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    books, rows = config["codebooks"], config.get("codebook_size", 2048) + 1
    hidden = config["lfm"]["hidden_size"]
    unused = {
        "audio_embedding.embedding_norm.weight": (hidden,),
        "audio_embedding.to_logits.weight": (books * rows, hidden),
    }
    extra = {key: drawn(key, shape, seed) for key, shape in unused.items()}
    extra["codebook_offsets"] = np.arange(books) * rows
    extra["audio_loss_weights"] = np.linspace(1, 0, books, dtype=np.float32)
    for book in range(books if config["depthformer"]["tie"] else 0):
        at = f"depth_embeddings.{book}."
        extra[at + "to_logits.weight"] = tensors[at + "embedding.weight"].copy()
    for layer in range(config["encoder"]["n_layers"]):
        at = f"conformer.layers.{layer}.conv.batch_norm.num_batches_tracked"
        extra[at] = np.array(100, dtype=np.int64)
    return extra


def _with_bias(at: str, weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in weights.items():
        out |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    return out
