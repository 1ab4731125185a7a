"""Published weights into tower and projector, and back. Knows names in files, no arithmetic.

The backbone's half of a vision checkpoint is lfm2_mm.loading's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lfm2_mm.backbone import Backbone
from lfm2_mm.device import Choice, set_threads
from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.linear import Int8Linear, Linear
from lfm2_mm.loading import check, prefix_of
from lfm2_mm.weights import read_json, read_tensors, tensor_keys, write
from vision.config import TowerConfig, VisionConfig
from vision.tower import VisionModel

TOWER, PROJECTOR, TEXT = (
    "model.vision_tower.vision_model.",
    "model.multi_modal_projector.",
    "model.language_model.",
)
HEAD = "lm_head.weight"
LEAVES = ("weight", "bias")
# Told by these tensors, whatever stands before them: newer files have no `vision_model.`
MARKS = {"tower.": "embeddings.patch_embedding.weight", "projector.": "linear_1.weight"}
POOLING = "head."  # of the tower: nothing reads it
IN_FLOAT = "patch_embedding"  # reads pixels; int8 would round them once more, for 1 % of the time


def layout(config: VisionConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter -> the published tensors, without what stands before a part's names.

    Parts are told apart by `tower.` and `projector.`; several tensors are stacked to make one.
    """
    names: dict[str, tuple[str, ...]] = {
        "tower.positions": ("tower.embeddings.position_embedding.weight",)
    }
    pairs = {
        "tower.patch_embedding": "tower.embeddings.patch_embedding",
        "tower.post_layernorm": "tower.post_layernorm",
    } | _blocks(config.tower)
    if config.projector_norm:
        pairs["projector.layer_norm"] = "projector.layer_norm"
    names |= {f"{ours}.{x}": (f"{theirs}.{x}",) for ours, theirs in pairs.items() for x in LEAVES}
    for layer in range(config.tower.layers):
        at = f"tower.encoder.layers.{layer}.self_attn."
        for leaf in LEAVES:
            parts = tuple(f"{at}{part}_proj.{leaf}" for part in "qkv")
            names[f"tower.layers.{layer}.attention.qkv_proj.{leaf}"] = parts
    for name in ("projector.linear_1", "projector.linear_2"):
        leaves = LEAVES if config.projector_bias else LEAVES[:1]
        names |= {f"{name}.{leaf}": (f"{name}.{leaf}",) for leaf in leaves}
    return names


def _blocks(config: TowerConfig) -> dict[str, str]:
    own = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attention.out_proj": "self_attn.out_proj",
        "feed_forward.fc1": "mlp.fc1",
        "feed_forward.fc2": "mlp.fc2",
    }
    return {
        f"tower.layers.{layer}.{ours}": f"tower.encoder.layers.{layer}.{theirs}"
        for layer in range(config.layers)
        for ours, theirs in own.items()
    }


def load_vision(folder: Path, choice: Choice) -> VisionModel:
    """Tower and projector of the checkpoint in `folder`, as `choice` says.

    Raises CheckpointDamaged when it is no vision checkpoint, or its weights are not exactly what
    config.json asks for.
    """
    config = VisionConfig.from_json(read_json(folder / "config.json"))
    keys = tensor_keys(folder)
    starts = {part: _start(keys, mark) for part, mark in MARKS.items()}
    _refuse_strangers(keys, (*starts.values(), prefix_of(keys)))
    tensors = chain.from_iterable(
        ((part + key, tensor) for key, tensor in read_tensors(folder, start))
        for part, start in starts.items()
    )
    return build_vision(config, tensors, choice)


def _start(keys: Iterable[str], mark: str) -> str:
    """What stands before `mark`, of which there is one."""
    found = [key.removesuffix(mark) for key in keys if key.endswith(mark)]
    if len(found) != 1:
        raise CheckpointDamaged(
            f"the weights hold {len(found)} tensors {mark}, a vision checkpoint holds 1"
        )
    return found[0]


def _refuse_strangers(keys: Iterable[str], starts: tuple[str, ...]) -> None:
    known = (*starts, HEAD, f"language_model.{HEAD}")
    strangers = [key for key in keys if not key.startswith(known)]
    if strangers or "" in starts:
        odd = ", ".join(strangers[:3]) or "names that do not tell the vision tower from the rest"
        raise CheckpointDamaged(
            f"the weights hold {odd}, which a vision checkpoint has no place for"
        )


def build_vision(
    config: VisionConfig, tensors: Iterable[tuple[str, Tensor]], choice: Choice
) -> VisionModel:
    """For inference, from (key as in `layout`, tensor) pairs, one tensor in memory at a time.

    Every tensor must be used and every parameter filled, with its exact shape and finite values.
    int4 means int8 here. Raises CheckpointDamaged.
    """
    choice = choice.for_many_rows()
    set_threads(choice.threads)
    with torch.device("meta"):
        model = VisionModel(config)
    for name, tensor in _stacked(config, awaited_shapes(model), tensors):
        _fill(model, name, tensor, choice)
    return model.eval().requires_grad_(False)


def awaited_shapes(model: VisionModel) -> dict[str, torch.Size]:
    """The shape of every published tensor."""
    ours = dict(model.named_parameters())
    return {
        part: torch.Size((ours[name].shape[0] // len(parts), *ours[name].shape[1:]))
        for name, parts in layout(model.config).items()
        for part in parts
    }


def _stacked(
    config: VisionConfig, awaited: dict[str, torch.Size], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) as soon as all its parts are read and checked."""
    names = layout(config)
    goes_to = {part: ours for ours, parts in names.items() for part in parts}
    pending: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors:
        if key.startswith("tower." + POOLING):
            continue
        check(key, tensor, awaited.pop(key, None))
        parts = pending.setdefault(goes_to[key], {})
        parts[key] = tensor
        if len(parts) == len(names[goes_to[key]]):
            del pending[goes_to[key]]
            yield goes_to[key], torch.cat([parts[part] for part in names[goes_to[key]]])
    if awaited:
        more = f" and {len(awaited) - 3} more" if len(awaited) > 3 else ""
        raise CheckpointDamaged(f"the weights lack {', '.join(sorted(awaited)[:3])}{more}")


def _fill(model: VisionModel, name: str, tensor: Tensor, choice: Choice) -> None:
    """Put one tensor where it belongs, in the dtype or packing chosen."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    packs = choice.weights == "int8" and isinstance(owner, Linear) and leaf == "weight"
    if packs and not owner_name.endswith(IN_FLOAT):
        parent = model.get_submodule(owner_name.rpartition(".")[0])
        setattr(parent, owner_name.rpartition(".")[2], Int8Linear(tensor, cast(Linear, owner).bias))
    else:
        tensor = tensor.to(choice.device, choice.torch_dtype)
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


def part_tensors(vision: VisionModel) -> Iterator[tuple[str, Tensor]]:
    """Float weights of tower and projector by key as in `layout`; views, no copies."""
    if any(isinstance(module, Int8Linear) for module in vision.modules()):
        raise ValueError("an int8 tower has no weights to save; open it with dtype='fp32'")
    ours = dict(vision.named_parameters())
    for name, parts in layout(vision.config).items():
        yield from zip(parts, ours[name].detach().chunk(len(parts)), strict=True)


def published_tensors(backbone: Backbone, vision: VisionModel) -> dict[str, Tensor]:
    """A whole checkpoint's float weights under the published names."""
    out: dict[str, Tensor] = {}
    for part, tensor in part_tensors(vision):
        start, _, rest = part.partition(".")
        out[{"tower": TOWER, "projector": PROJECTOR}[start] + rest] = tensor.contiguous()
    for name, tensor in backbone.state_tensors().items():
        out[name if name == HEAD else TEXT + name] = tensor
    return out


def save(folder: Path, backbone: Backbone, vision: VisionModel, files: Mapping[str, Any]) -> Path:
    """Write a checkpoint that transformers' Lfm2VlForConditionalGeneration loads as it is.

    `files`: what stands beside weights and config.json (tokenizer, processor, generation settings,
    card), as lfm2_mm.weights.write takes them. Weights keep their dtype.
    """
    dtype = str(vision.tower.positions.dtype).removeprefix("torch.")
    config = vision.config.to_json() | {"dtype": dtype}
    return write(folder, published_tensors(backbone, vision), config, files)
