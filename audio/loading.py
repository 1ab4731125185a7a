"""Published speech checkpoints into a model and back. Knows the names in the files, no arithmetic.

Two layouts are published: with and without copies of tied matrices. Both load; so does a file that
stores the tensors nothing ever uses. Anything else too much or too little is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from audio.config import AudioConfig
from audio.depth import CodebookHead, DepthTransformer, FrameEmbedding
from audio.encoder import load_encoder, published_encoder
from audio.model import SpeechModel
from lfm2_mm.device import Choice
from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.linear import Int8Linear, Linear, pack_linear
from lfm2_mm.loading import build, check
from lfm2_mm.weights import read_json, read_tensors, tensor_keys

LFM = "lfm."
EARS = ("conformer.", "audio_adapter.")
# Published in some files, used by nobody (the reference makes the buffers anew).
UNUSED = frozenset(
    {
        "audio_embedding.embedding_norm.weight",
        "audio_embedding.to_logits.weight",
        "codebook_offsets",
        "audio_loss_weights",
    }
)
FRAMES = "audio_embedding.embedding.weight"


def load_speech(folder: Path, choice: Choice) -> SpeechModel:
    """Open the checkpoint in `folder` for inference. Raises CheckpointDamaged."""
    config = AudioConfig.from_json(read_json(folder / "config.json"))
    keys = set(tensor_keys(folder)) - UNUSED
    mouth = {key for key in keys if not key.startswith((LFM, *EARS))}
    ears = ((EARS[i] + key, t) for i in (0, 1) for key, t in read_tensors(folder, EARS[i]))
    backbone = build(config.backbone, read_tensors(folder, LFM), choice)
    encoder = load_encoder(config, ears, choice)
    frames, depth = load_mouth(config, _named(folder, mouth), choice)
    return SpeechModel(config, backbone, encoder, frames, depth).eval().requires_grad_(False)


def published_speech(model: SpeechModel) -> dict[str, Tensor]:
    """A float model's weights under the published names, tied copies left out, for saving."""
    tensors = {LFM + key: tensor for key, tensor in model.backbone.state_tensors().items()}
    tensors |= published_encoder(model.ears)
    tensors[FRAMES] = model.frames.weight.detach()
    return tensors | published_depth(model.depth)


# ---- the mouth: depth transformer and frame embedding -------------------------------------


def depth_layout(config: AudioConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter -> the published tensors that are stacked to make it."""
    names: dict[str, tuple[str, ...]] = {
        "project.weight": ("depth_linear.weight",),
        "project.bias": ("depth_linear.bias",),
    }
    for layer in range(config.depth.layers):
        ours, at = f"layers.{layer}.", f"depthformer.layers.{layer}."
        attention = at + "operator.bounded_attention."
        feed = at + "feed_forward."
        names |= {
            ours + "operator_norm.weight": (at + "operator_norm.weight",),
            ours + "ffn_norm.weight": (at + "ffn_norm.weight",),
            ours + "self_attn.qkv_proj.weight": (at + "operator.qkv_proj.weight",),
            ours + "self_attn.out_proj.weight": (at + "operator.out_proj.weight",),
            ours + "self_attn.q_layernorm.weight": (attention + "q_layernorm.weight",),
            ours + "self_attn.k_layernorm.weight": (attention + "k_layernorm.weight",),
            ours + "feed_forward.w13.weight": (feed + "w1.weight", feed + "w3.weight"),
            ours + "feed_forward.w2.weight": (feed + "w2.weight",),
        }
    for book in range(config.codebooks):
        ours, at = f"heads.{book}.", f"depth_embeddings.{book}."
        names[ours + "embedding"] = (at + "embedding.weight",)
        names[ours + "norm.weight"] = (at + "embedding_norm.weight",)
        if not config.depth.tied:
            names[ours + "head.weight"] = (at + "to_logits.weight",)
    return names


def load_mouth(
    config: AudioConfig, tensors: Iterable[tuple[str, Tensor]], choice: Choice
) -> tuple[FrameEmbedding, DepthTransformer]:
    """From published (key, tensor) pairs, all of which must be used. Raises CheckpointDamaged."""
    with torch.device("meta"):
        frames, depth = FrameEmbedding(config), DepthTransformer(config)
    awaited = {FRAMES: frames.weight.shape}
    awaited |= {key: tensor.shape for key, tensor in published_depth(depth).items()}
    found: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for key, tensor in tensors:
        if config.depth.tied and _is_tied_copy(key, config):
            copies[key] = tensor
        else:
            check(key, tensor, awaited.pop(key, None))
            found[key] = tensor
    if awaited:
        more = f" and {len(awaited) - 3} more" if len(awaited) > 3 else ""
        raise CheckpointDamaged(f"the weights lack {', '.join(sorted(awaited)[:3])}{more}")
    _compare_copies(copies, found)
    set_parameter(frames, "weight", found[FRAMES], choice)
    for name, parts in depth_layout(config).items():
        tensor = torch.cat([found.pop(part) for part in parts])
        set_parameter(depth, name, paired(name, tensor, config, to_halves), choice)
    if choice.packed and config.depth.tied:
        for head in cast("list[CodebookHead]", list(depth.heads)):
            head.head = Int8Linear(head.embedding)
    return frames, depth


def published_depth(depth: DepthTransformer) -> dict[str, Tensor]:
    """A float depth transformer's weights under the published names."""
    ours = dict(depth.named_parameters())
    out: dict[str, Tensor] = {}
    for name, parts in depth_layout(depth.whole).items():
        if name not in ours:
            raise ValueError("a packed model has no weights to save; open it with dtype='fp32'")
        tensor = paired(name, ours[name].detach(), depth.whole, to_pairs)
        out |= {k: t.contiguous() for k, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return out


def paired(
    name: str, tensor: Tensor, config: AudioConfig, order: Callable[[int], Tensor]
) -> Tensor:
    """Published rows rotate neighbours (2i, 2i+1), ours halves (i, i + dim/2): reorder the rows of
    queries and keys, and the norms over them; everything else stays as it is."""
    depth = config.depth
    dim = depth.width // depth.heads
    if name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return tensor[order(dim)]
    if not name.endswith("qkv_proj.weight"):
        return tensor
    turned = dim * (depth.heads + depth.kv_heads)
    rows = tensor[:turned].unflatten(0, (-1, dim))[:, order(dim)].flatten(0, 1)
    return torch.cat((rows, tensor[turned:]))


def to_halves(dim: int) -> Tensor:
    """Which published row each of ours is: 0, 2, …, 1, 3, …"""
    return torch.arange(dim).view(-1, 2).t().flatten()


def to_pairs(dim: int) -> Tensor:
    """The way back: 0, dim/2, 1, dim/2 + 1, …"""
    return torch.arange(dim).view(2, -1).t().flatten()


def set_parameter(module: nn.Module, name: str, tensor: Tensor, choice: Choice) -> None:
    """Put one tensor where it belongs, in the dtype or packing chosen."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if choice.packed and isinstance(owner, Linear) and leaf == "weight":
        parent = module.get_submodule(owner_name.rpartition(".")[0])
        # What chooses codes has the last word: heads stay int8.
        weights = "int8" if owner_name.endswith(".head") else choice.weights
        packed = pack_linear(tensor, owner.bias, weights)
        setattr(parent, owner_name.rpartition(".")[2], packed)
        return
    looked_up = leaf == "embedding" or isinstance(owner, FrameEmbedding)  # never multiplied
    dtype = tensor.dtype if looked_up and choice.packed else choice.torch_dtype
    setattr(owner, leaf, nn.Parameter(tensor.to(choice.device, dtype), requires_grad=False))


def _is_tied_copy(key: str, config: AudioConfig) -> bool:
    copies = {f"depth_embeddings.{book}.to_logits.weight" for book in range(config.codebooks)}
    return key in copies


def _compare_copies(copies: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for key, tensor in copies.items():
        other = key.replace("to_logits", "embedding")
        if not torch.equal(tensor, found[other].to(tensor.dtype)):
            raise CheckpointDamaged(f"{key} differs from {other}, which it should be tied to")


def _named(folder: Path, keys: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `keys`, in any order."""
    for prefix in sorted({key.partition(".")[0] for key in keys}):
        for key, tensor in read_tensors(folder, prefix):
            if prefix + key in keys:
                yield prefix + key, tensor
