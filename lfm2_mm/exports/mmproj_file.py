"""A vision checkpoint's tower and projector as llama.cpp's mmproj file. Knows GGUF's names.

As llama.cpp's own converter writes it: the patch embedding is a convolution, channels first, and
stays F32 with norms, biases and positions; a projector without LayerNorm has no such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lfm2_mm.exports.gguf_file import (
    COARSE,
    Planned,
    remarks,
    type_of,
    typed_writer,
    write_tensors,
)

if TYPE_CHECKING:
    from gguf import GGUFWriter

PATCHES = "tower.embeddings.patch_embedding.weight"
OUTSIDE = {
    "tower.embeddings.patch_embedding": "v.patch_embd",
    "tower.embeddings.position_embedding": "v.position_embd",
    "tower.post_layernorm": "v.post_ln",
    "projector.layer_norm": "mm.input_norm",
    "projector.linear_1": "mm.1",
    "projector.linear_2": "mm.2",
}
IN_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
LAYERS = "tower.encoder.layers."


@dataclass(frozen=True)
class TowerSizes:
    """What llama.cpp has to know of tower, projector and pixels. Pixels, patches, sizes."""

    width: int
    feed_forward: int
    heads: int
    layers: int
    grid: int  # side of the square of learned positions
    patch: int
    downsample: int
    norm_eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def type_beside(kind: str) -> str:
    """The type of the tower beside a language model of `kind`: never below 8 bits."""
    return "q8_0" if kind in COARSE else kind


def write_mmproj(
    path: Path, sizes: TowerSizes, hidden: int, tensors: dict[str, Tensor], kind: str, name: str
) -> list[str]:
    """Write `tensors`, by published key from `tower.` and `projector.` on, for rows of `hidden`.

    Returns remarks for a person.
    """
    plans = plan(tensors, sizes, kind)
    writer = typed_writer(path, "clip", name, kind)
    try:
        writer.add_type("mmproj")
        add_sizes(writer, sizes, hidden)
        write_tensors(writer, path, plans, given(tensors, sizes))
    finally:
        writer.close()
    return remarks(plans, kind)


def add_sizes(writer: GGUFWriter, sizes: TowerSizes, hidden: int) -> None:
    """The configuration under GGUF's names."""
    from gguf import VisionProjectorType

    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(VisionProjectorType.LFM2)
    writer.add_vision_projection_dim(hidden)
    writer.add_vision_image_size(sizes.grid * sizes.patch)
    writer.add_vision_patch_size(sizes.patch)
    writer.add_vision_embedding_length(sizes.width)
    writer.add_vision_feed_forward_length(sizes.feed_forward)
    writer.add_vision_block_count(sizes.layers)
    writer.add_vision_head_count(sizes.heads)
    writer.add_vision_attention_layernorm_eps(sizes.norm_eps)
    writer.add_vision_projector_scale_factor(sizes.downsample)
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean(list(sizes.mean))
    writer.add_vision_image_std(list(sizes.std))
    writer.add_string("clip.vision.image_resize_algo", "bilinear")  # gguf has no word for it yet


def plan(tensors: dict[str, Tensor], sizes: TowerSizes, kind: str) -> list[Planned]:
    """Every tensor of the file, in order."""
    get = given(tensors, sizes)
    plans = []
    for key in tensors:
        name, shape = gguf_name(key), tuple(get(key).shape)
        exact = len(shape) != 2 or name.startswith("v.position_embd")
        plans.append(Planned(name, (key,), shape, type_of(name, shape, "f32" if exact else kind)))
    return plans


def rounded(
    tensors: dict[str, Tensor], sizes: TowerSizes, kind: str
) -> Iterator[tuple[str, Tensor]]:
    """The published tensors as the file has them."""
    for one in plan(tensors, sizes, kind):
        for key, tensor in one.rounded(given(tensors, sizes)):
            yield key, tensor.permute(0, 2, 3, 1).flatten(1) if key == PATCHES else tensor


def given(tensors: dict[str, Tensor], sizes: TowerSizes) -> Callable[[str], Tensor]:
    """The tensors as they are, but the patch embedding as a convolution (width, channels, y, x)."""

    def get(key: str) -> Tensor:
        if key != PATCHES:
            return tensors[key]
        patches = tensors[key].unflatten(1, (sizes.patch, sizes.patch, -1))
        return patches.permute(0, 3, 1, 2)

    return get


def gguf_name(key: str) -> str:
    """GGUF's name of a published tensor."""
    owner, _, leaf = key.rpartition(".")
    if not owner.startswith(LAYERS):
        return f"{OUTSIDE[owner]}.{leaf}"
    layer, _, inner = owner.removeprefix(LAYERS).partition(".")
    return f"v.blk.{layer}.{IN_LAYER[inner]}.{leaf}"
