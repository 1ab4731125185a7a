"""LFM2 weights and words as a GGUF file, which llama.cpp runs. Knows GGUF's names and keys.

As llama.cpp's own converter writes it: norms, convolution taps, routers and a ColBERT's projection
stay F32, every other matrix has the type asked. Types of 4 and 5 bits keep the embedding, which is
the head too, in Q8_0.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from lfm2_mm.errors import BadInput
from lfm2_mm.extras import require
from lfm2_mm.loading import published_tensors

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

    from lfm2_mm.exports.vocabulary import Vocabulary

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4")
COARSE = TYPES[4:]
# What the file itself says it mostly holds: llama.cpp's numbers for it.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9,
              "bf16": 32, "mxfp4": 38}  # fmt: skip
OUTSIDE = {
    "embed_tokens.weight": "token_embd.weight",
    "embedding_norm.weight": "token_embd_norm.weight",  # the final norm, in spite of its name
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "operator_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "conv.conv.weight": "shortconv.conv.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
    "feed_forward.gate.weight": "ffn_gate_inp.weight",
    "feed_forward.expert_bias": "exp_probs_b.bias",
}
OF_EXPERTS = {"w1.weight": "ffn_gate_exps.weight", "w3.weight": "ffn_up_exps.weight",
              "w2.weight": "ffn_down_exps.weight"}  # fmt: skip
PROJECTION = "dense_2.weight"
EXACT = ("norm.weight", "shortconv.conv.weight", "ffn_gate_inp.weight", ".bias", PROJECTION)


@dataclass(frozen=True)
class Planned:
    """One tensor of the file, and the published ones it is made of: several are stacked."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    def bytes_of(self, tensor: Callable[[str], Tensor]) -> np.ndarray:
        """What the file holds: values, or blocks as bytes."""
        from gguf import quantize

        pieces = [tensor(part).float() for part in self.parts]
        whole = torch.stack(pieces) if len(pieces) > 1 else pieces[0]
        return quantize(whole.reshape(self.shape).numpy(), self.kind)

    def rounded(self, tensor: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The published tensors as the file has them."""
        from gguf import dequantize

        whole = torch.from_numpy(dequantize(self.bytes_of(tensor), self.kind).astype(np.float32))
        shape = tensor(self.parts[0]).shape
        yield from zip(self.parts, whole.view(len(self.parts), *shape), strict=True)


def write_gguf(
    path: Path,
    config: BackboneConfig,
    tensor: Callable[[str], Tensor],
    kind: str,
    vocabulary: Vocabulary,
    *,
    name: str = "LFM2",
    projection: Tensor | None = None,
    bidirectional: bool = False,
) -> list[str]:
    """Write the weights that `tensor` gives by published key, one in memory at a time.

    kind: one of TYPES. projection: (dim, hidden) of a ColBERT; None: a language model.
    Returns remarks for a person. Raises BadInput for what llama.cpp cannot run, MissingExtra.
    """
    require("gguf", "gguf")
    require_runnable(config)
    plans = plan(config, kind, projection)
    given = tensor if projection is None else lambda key: projection if not key else tensor(key)
    writer = typed_writer(path, "lfm2moe" if config.experts else "lfm2", name, kind)
    try:
        add_sizes(writer, config)
        if projection is not None:
            add_projection(writer, projection, bidirectional)
        vocabulary.add_to(writer)
        write_tensors(writer, path, plans, given)
    finally:
        writer.close()
    return remarks(plans, kind)


@contextlib.contextmanager
def _short_writes_told(path: Path) -> Iterator[None]:
    """numpy says of a full disk only how much it wrote."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def typed_writer(path: Path, architecture: str, name: str, kind: str) -> GGUFWriter:
    """A writer with what the file says of itself."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def write_tensors(
    writer: GGUFWriter, path: Path, plans: list[Planned], tensor: Callable[[str], Tensor]
) -> None:
    """What `writer` was told, and the tensors, one in memory at a time."""
    for one in plans:
        writer.add_tensor_info(one.name, one.shape, np.dtype("f4"), nbytes(one), one.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in plans:
        with _short_writes_told(path):
            writer.write_tensor_data(one.bytes_of(tensor))


def require_runnable(config: BackboneConfig) -> None:
    """Raise BadInput for what a configuration can say and llama.cpp's LFM2 does not run."""
    experts = config.experts
    reasons = {
        "biases in its convolutions": config.conv_bias,
        "no convolution": "conv" not in config.layer_types,
        "no attention": "full_attention" not in config.layer_types,
        "expert weights that are scaled or not normalised": experts is not None
        and (not experts.normalise or experts.scale != 1.0),
    }
    for reason, here in reasons.items():
        if here:
            raise BadInput(
                f"this checkpoint has {reason}, which llama.cpp's LFM2 cannot run; --to onnx can"
            )


def plan(config: BackboneConfig, kind: str, projection: Tensor | None) -> list[Planned]:
    """Every tensor of the file, in order."""
    with torch.device("meta"):
        shapes = {k: tuple(t.shape) for k, t in published_tensors(Backbone(config)).items()}
    plans = []
    for name, parts in gguf_names(config, list(shapes)).items():
        shape = shapes[parts[0]]
        if name.endswith("shortconv.conv.weight"):
            shape = (shape[0], shape[2])  # (hidden, 1, kernel) -> (hidden, kernel)
        shape = (len(parts), *shape) if "_exps." in name else shape
        plans.append(Planned(name, parts, shape, type_of(name, shape, kind)))
    if projection is not None:
        shape = tuple(projection.shape)
        plans.append(Planned(PROJECTION, ("",), shape, type_of(PROJECTION, shape, kind)))
    return plans


def gguf_names(config: BackboneConfig, keys: list[str]) -> dict[str, tuple[str, ...]]:
    """GGUF's name -> the published keys, in the order of `keys`; an expert's parts are joined."""
    names: dict[str, tuple[str, ...]] = {}
    for key in keys:
        if key in OUTSIDE:
            names[OUTSIDE[key]] = (key,)
            continue
        _, layer, inner = key.split(".", 2)
        if ".experts." in key:
            name = f"blk.{layer}.{OF_EXPERTS[inner.split('.', 3)[3]]}"
            names[name] = (*names.get(name, ()), key)
        else:
            names[f"blk.{layer}.{IN_LAYER[inner]}"] = (key,)
    return names


def type_of(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """The type a tensor is kept in: F16 where a row is no whole number of blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1 or name.endswith(EXACT):
        return GGMLQuantizationType.F32
    if kind in COARSE and name in ("token_embd.weight", "output.weight"):
        kind = "q8_0"
    wanted = GGMLQuantizationType[kind.upper()]
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else GGMLQuantizationType.F16


def remarks(plans: list[Planned], kind: str) -> list[str]:
    """What a person should know of the types in the file."""
    odd = [one.name for one in plans if one.kind.name == "F16" and kind != "f16"]
    if not odd:
        return []
    return [f"{len(odd)} matrices, {odd[0]} the first, have rows that {kind} cannot hold: f16"]


def nbytes(one: Planned) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[one.kind]
    return int(np.prod(one.shape)) // block * size


def add_sizes(writer: GGUFWriter, config: BackboneConfig) -> None:
    """The configuration under GGUF's names."""
    from gguf import ExpertGatingFuncType

    attends = [kind == "full_attention" for kind in config.layer_types]
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv([config.kv_heads if here else 0 for here in attends])  # 0: convolution
    if config.head_dim * config.heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_shortconv_l_cache(config.kernel)
    if config.experts is not None:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.active)
        writer.add_expert_feed_forward_length(config.experts.width)
        writer.add_leading_dense_block_count(config.experts.dense_layers)
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def add_projection(writer: GGUFWriter, projection: Tensor, bidirectional: bool) -> None:
    """That the file gives one vector a token, how long, and who looks ahead."""
    from gguf import PoolingType

    writer.add_embedding_length_out(projection.shape[0])
    writer.add_pooling_type(PoolingType.NONE)
    writer.add_causal_attention(not bidirectional)
