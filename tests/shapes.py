"""Backbones of awkward shapes: written by transformers, opened by us and by transformers, once.

Knows how to make and compare them; which equalities hold is the tests' business.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from tests import tiny
from tests.conftest import SCRATCH

ATTENTION, CONV = "full_attention", "conv"
MIXED = [CONV, CONV, ATTENTION, CONV, ATTENTION, CONV]
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"layer_types": MIXED},  # kernel 3, tied, two query heads to a key head
    "attention_first": {
        "layer_types": [ATTENTION, CONV, CONV, ATTENTION],
        "num_key_value_heads": 1,
        "conv_L_cache": 4,
        "conv_bias": True,
        "tie_word_embeddings": False,
    },
    "conv_only": {"layer_types": [CONV, CONV, CONV], "conv_L_cache": 5},
    "attention_only": {
        "layer_types": [ATTENTION, ATTENTION],
        "num_key_value_heads": 4,
        "head_dim": 24,  # more than hidden_size / heads
        "tie_word_embeddings": False,
    },
    "kernel_two": {"layer_types": [CONV, ATTENTION, CONV], "conv_L_cache": 2},
    "moe": {"layer_types": MIXED},
    "moe_plain": {
        "layer_types": [ATTENTION, CONV, ATTENTION],
        "num_key_value_heads": 1,
        "conv_L_cache": 4,
        "tie_word_embeddings": False,
        "num_dense_layers": 1,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "use_expert_bias": False,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.7,
    },
}
NAMES = tuple(SHAPES)
# Where real tokens lie in the rows of a batch.
MASKS = {
    "right": [[1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]],
    "left": [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1], [1] * 7, [0, 0, 0, 0, 0, 0, 1]],
    "mixed": [[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [0] * 6 + [1]],
    "between": [[1, 0, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0, 1], [1] * 7],
    "one row, right": [[1, 1, 1, 0, 0]],
    "one row, left": [[0, 0, 1, 1, 1]],
    "one row, one token": [[0, 0, 0, 1, 0]],
    "with rows of padding": [[0] * 5, [0, 1, 1, 0, 1], [0] * 5, [1] * 5],
}
# fp32: the same sums in another order (other matrix shapes, fused projections). Up to 7e-6 was seen
# in hidden states (up to 5) and 2e-5 in logits (up to 55); a wrong tap or mask gives 1e-1 and more.
CLOSE = {"atol": 5e-5, "rtol": 1e-5}


@dataclass(frozen=True)
class Pair:
    """One checkpoint in our backbone and in transformers' model, both fp32."""

    folder: Path
    ours: Backbone
    reference: Any


@functools.cache
def folder(name: str) -> Path:
    """The checkpoint `name` of SHAPES, as transformers saves it."""
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SCRATCH)) / name
    write = tiny.moe_folder if name.startswith("moe") else tiny.lfm2_folder
    return write(path, **SHAPES[name])


@functools.cache
def pair(name: str) -> Pair:
    return Pair(folder(name), opened(name), reference_at(folder(name)))


def opened(where: str | Path, dtype: str = "fp32", **options: Any) -> Backbone:
    """A name of SHAPES or a folder in our backbone."""
    path = folder(where) if isinstance(where, str) else where
    backbone = Backbone.open(path, device="cpu", dtype=dtype, **options)
    torch.set_num_threads(1)  # matrices this small are done before a second thread has woken
    return backbone


def reference_at(path: Path) -> Any:
    """transformers' own model of a folder, fp32; nothing may be missing or left over."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def some_ids(*shape: int, seed: int = 0) -> Tensor:
    """Random ids; 0 is left out, since transformers passes no gradient to the pad row."""
    return torch.randint(1, 512, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def full(backbone: Backbone, ids: Tensor) -> Tensor:
    """Hidden states of one pass over whole rows: what every other way must equal."""
    return backbone(backbone.embed(ids))


@torch.no_grad()
def reference_hidden(reference: Any, ids: Tensor, **options: Any) -> Tensor:
    return reference.model(input_ids=ids, use_cache=False, **options).last_hidden_state


def assert_close(actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **(tolerance or CLOSE))


def padded(rows: Sequence[Tensor], masks: Sequence[Sequence[int]], seed: int = 9) -> Any:
    """Ids and mask (batch, new): row i of `rows` laid where `masks[i]` is 1, noise elsewhere.

    Noise, since nothing may depend on what stands at padding.
    """
    mask = torch.tensor(masks, dtype=torch.bool)
    ids = some_ids(*mask.shape, seed=seed)
    for row, real, one in zip(ids, mask, rows, strict=True):
        row[real] = one
    return ids, mask
