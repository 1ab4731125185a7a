"""Tiny random voices in the published layouts: Mimi's file, LFM2.5's audio_detokenizer/.

Like tests/tiny_audio.py: weights from numpy's frozen RandomState, so golden numbers need none;
knows none of our code, and runs where only numpy and safetensors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests import tiny
from tests.tiny_audio import drawn, lfm_shapes

MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
MIMI: dict[str, Any] = {  # the published sizes are in the comments
    "codebooks_stored": 12,  # 32
    "codebook_size": 64,  # 2048
    "codebook_width": 8,  # 256
    "width": 32,  # 512
    "layers": 3,  # 8
    "heads": 4,  # 8
    "feed_forward": 48,  # 2048
    "window": 10,  # 250
    "ratios": (4, 3, 2, 2),  # (8, 6, 5, 4)
    "filters": 4,  # 64
}
DETOKENIZER: dict[str, Any] = {  # the reference fixes hidden size, codebooks and output size
    "architectures": ["Lfm25AudioTokenizer"],
    "model_type": "lfm2",
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "sliding_attention", "sliding_attention", "conv"],
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "block_ff_dim": 384,  # two thirds, rounded up: 256
    "sliding_window": 30,
    "rope_theta": 1000000.0,
    "norm_eps": 1e-05,
    "conv_L_cache": 3,
    "vocab_size": 64,
    "output_size": 1282,
}
SMALL_DETOKENIZER: dict[str, Any] = DETOKENIZER | {  # a bundled checkpoint's kind
    "hidden_size": 48,
    "layer_types": ["conv", "sliding_attention", "conv"],
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "block_ff_dim": 64,
    "block_auto_adjust_ff_dim": False,
    "sliding_window": 9,
    "output_size": 2 * 21,  # spectra of 40 samples, 10 apart: 60 samples a frame
    "codebooks": 3,
    "codebook_size": 20,
}


def mimi_file(folder: Path | str, *, seed: int = 0, newer: bool = False, **settings: Any) -> Path:
    """A whole Mimi, both halves, under Kyutai's names; `newer` takes their newer spelling."""
    tensors = mimi_tensors({**MIMI, **settings}, seed)
    if newer:
        tensors = {newer_spelling(key): tensor for key, tensor in tensors.items()}
    path = Path(folder) / MIMI_NAME
    save_file(tensors, path)
    return path


def newer_spelling(key: str) -> str:
    key = key.replace("self_attn.in_proj_weight", "self_attn.in_projs.0.weight")
    return key.replace("self_attn.out_proj.weight", "self_attn.out_projs.0.weight")


def mimi_tensors(sizes: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    shapes = {**_seanet(sizes, "encoder"), **_seanet(sizes, "decoder")}
    for half in ("encoder", "decoder"):
        for layer in range(sizes["layers"]):
            shapes |= _transformer(f"{half}_transformer.transformer.layers.{layer}.", sizes)
    width = sizes["width"]
    shapes["downsample.conv.conv.conv.weight"] = (width, width, 4)
    shapes["upsample.convtr.convtr.convtr.weight"] = (width, 1, 4)
    for part, books in (("first", 1), ("rest", sizes["codebooks_stored"] - 1)):
        shapes |= _quantizer(f"quantizer.rvq_{part}.", books, sizes)
    return {key: _drawn(key, shape, seed) for key, shape in shapes.items()}


def _drawn(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if key.endswith("_initialized"):
        return np.ones(shape, np.float32)
    made = drawn(key, shape, seed)
    if key.endswith("cluster_usage"):
        return 1 + np.abs(made)
    if key.endswith(("embedding_sum", "convtr.weight")):  # whose first axis is not the outputs
        return made * np.float32(
            np.sqrt(np.prod(shape[1:]) / 4 / (shape[0] if shape[1] > 1 else 1))
        )
    return made


def _seanet(sizes: Mapping[str, Any], half: str) -> dict[str, tuple[int, ...]]:
    """{half}.model.*: the decoder's convolutions, or the encoder's, in the other order."""
    shapes: dict[str, tuple[int, ...]] = {}
    ratios = sizes["ratios"] if half == "decoder" else sizes["ratios"][::-1]
    most, least, width = sizes["filters"] << len(ratios), sizes["filters"], sizes["width"]

    def add(place: object, weight: tuple[int, ...], kind: str = "conv") -> None:
        at = f"{half}.model.{place}.{kind}.{kind}."
        shapes[at + "weight"] = weight
        shapes[at + "bias"] = (weight[1] if kind == "convtr" else weight[0],)

    def residual(place: int, channels: int) -> None:
        add(f"{place}.block.1", (channels // 2, channels, 3))
        add(f"{place}.block.3", (channels, channels // 2, 1))

    if half == "decoder":
        add(0, (most, width, 7))
        for n, ratio in enumerate(ratios):
            add(2 + 3 * n, (most >> n, most >> n + 1, 2 * ratio), "convtr")
            residual(3 + 3 * n, most >> n + 1)
        add(2 + 3 * len(ratios), (1, least, 3))
    else:
        add(0, (least, 1, 7))
        for n, ratio in enumerate(ratios):
            residual(1 + 3 * n, least << n)
            add(3 + 3 * n, (least << n + 1, least << n, 2 * ratio))
        add(2 + 3 * len(ratios), (width, most, 3))
    return shapes


def _transformer(at: str, sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, wide = sizes["width"], sizes["feed_forward"]
    return {
        at + "self_attn.in_proj_weight": (3 * width, width),
        at + "self_attn.out_proj.weight": (width, width),
        at + "linear1.weight": (wide, width),
        at + "linear2.weight": (width, wide),
        **{f"{at}norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")},
        **{f"{at}layer_scale_{n}.scale": (width,) for n in (1, 2)},
    }


def _quantizer(at: str, books: int, sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, code = sizes["width"], sizes["codebook_width"]
    shapes: dict[str, tuple[int, ...]] = {
        at + "input_proj.weight": (code, width, 1),
        at + "output_proj.weight": (width, code, 1),
    }
    for book in range(books):
        own = f"{at}vq.layers.{book}._codebook."
        shapes[own + "_initialized"] = (1,)
        shapes[own + "cluster_usage"] = (sizes["codebook_size"],)
        shapes[own + "embedding_sum"] = (sizes["codebook_size"], code)
    return shapes


def detokenizer_folder(path: Path | str, *, seed: int = 0, **settings: Any) -> Path:
    """audio_detokenizer/ inside of the folder `path`."""
    config = {**DETOKENIZER, **settings}
    folder = Path(path) / "audio_detokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_json(folder / "config.json", config)
    save_file(detokenizer_tensors(config, seed), folder / "model.safetensors")
    return folder


def detokenizer_tensors(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    width, hidden = config["output_size"], config["hidden_size"]
    wide = config["block_ff_dim"]
    if config.get("block_auto_adjust_ff_dim", True):
        wide = 256 * -(-int(2 * wide / 3) // 256)
    rows = config.get("codebooks", 8) * config.get("codebook_size", 2048)
    shapes = lfm_shapes({**config, "block_ff_dim": wide})
    tensors = {key: drawn(key, shape, seed) for key, shape in shapes.items()}
    tensors["emb.emb.weight"] = drawn("emb.emb.weight", (rows, hidden), seed) * hidden**0.5
    for key, shape in (("lin.weight", (width, hidden)), ("lin.bias", (width,))):
        tensors[key] = drawn(key, shape, seed)
    size = width - 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    tensors["istft.window"] = window.astype(np.float32)
    return {key: np.ascontiguousarray(t, np.float32) for key, t in tensors.items()}


def some_codes(codebooks: int, frames: int, size: int, seed: int = 0) -> np.ndarray:
    """(codebooks, frames) int64."""
    return np.random.RandomState(seed).randint(0, size, (codebooks, frames)).astype(np.int64)
