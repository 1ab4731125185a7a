"""Published weights into a backbone and back. Knows the names in the files, no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import Choice, set_threads
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.linear import Int8Linear, Linear, pack_linear
from lfm2_mm.weights import read_json, read_tensors, tensor_keys


def layout(config: BackboneConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter -> the published tensors (no `model.` prefix) that are stacked to make it."""
    names: dict[str, tuple[str, ...]] = {
        "embedding": ("embed_tokens.weight",),
        "norm.weight": ("embedding_norm.weight",),
    }
    if not config.tied:
        names["head.weight"] = ("lm_head.weight",)
    for layer, kind in enumerate(config.layer_types):
        at = f"layers.{layer}."
        own = ["operator_norm.weight", "ffn_norm.weight"]
        fused: dict[str, tuple[str, ...]] = {}
        if kind == "conv":
            parts = ["weight", "bias"] if config.conv_bias else ["weight"]
            own += [f"conv.{proj}.{part}" for proj in ("in_proj", "out_proj") for part in parts]
            fused |= {f"conv.{part}": (f"conv.conv.{part}",) for part in parts}
        else:
            own += [f"self_attn.{n}.weight" for n in ("out_proj", "q_layernorm", "k_layernorm")]
            fused["self_attn.qkv_proj.weight"] = tuple(
                f"self_attn.{n}_proj.weight" for n in ("q", "k", "v")
            )
        if config.is_dense(layer):
            networks = ["feed_forward."]
        else:
            assert config.experts is not None
            own.append("feed_forward.gate.weight")
            own += ["feed_forward.expert_bias"] if config.experts.use_bias else []
            networks = [f"feed_forward.experts.{e}." for e in range(config.experts.count)]
        for network in networks:
            own.append(network + "w2.weight")
            fused[network + "w13.weight"] = (network + "w1.weight", network + "w3.weight")
        names |= {at + name: (at + name,) for name in own}
        names |= {at + name: tuple(at + part for part in parts) for name, parts in fused.items()}
    return names


def load_backbone(
    folder: Path,
    choice: Choice,
    active_experts: int | None = None,
    bidirectional: bool = False,
    head: bool = True,
) -> Backbone:
    """Open the checkpoint in `folder` as `choice` says. Raises CheckpointDamaged, BadInput.

    Of a vision checkpoint the tensors of the language model are read, and no others.
    """
    raw = read_json(folder / "config.json")
    config = BackboneConfig.from_json(raw)
    if active_experts is not None:
        config = with_active_experts(config, active_experts)
    prefix = prefix_of(tensor_keys(folder))
    tensors: Iterable[tuple[str, Tensor]]
    if "text_config" in raw:
        tensors = chain(read_tensors(folder, prefix), language_head(folder))
    else:
        tensors = ((key.removeprefix(prefix), tensor) for key, tensor in read_tensors(folder))
    return build(config, tensors, choice, bidirectional=bidirectional, head=head)


def language_head(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The head of a vision checkpoint, which lies beside its language model, if it is stored."""
    return ((f"lm_head{key}", tensor) for key, tensor in read_tensors(folder, "lm_head"))


def with_active_experts(config: BackboneConfig, active: int) -> BackboneConfig:
    """The same mixture with another number of experts a token."""
    if config.experts is None:
        raise BadInput(f"{active} active experts were asked, but this checkpoint is dense")
    if not 1 <= active <= config.experts.count:
        raise BadInput(
            f"{active} active experts were asked; this checkpoint has 1 to {config.experts.count}"
        )
    return replace(config, experts=replace(config.experts, active=active))


def prefix_of(keys: Iterable[str]) -> str:
    """What stands before `embed_tokens.weight`: "model." in a language model, "" in a trunk."""
    found = [key for key in keys if key.endswith("embed_tokens.weight")]
    if len(found) != 1:
        raise CheckpointDamaged(f"the weights hold {len(found)} tensors embed_tokens.weight, not 1")
    return found[0].removesuffix("embed_tokens.weight")


def build(
    config: BackboneConfig,
    tensors: Iterable[tuple[str, Tensor]],
    choice: Choice,
    *,
    bidirectional: bool = False,
    head: bool = True,
) -> Backbone:
    """A backbone for inference from published (key, tensor) pairs, one tensor in memory at a time.

    Every tensor must be used and every parameter filled, with its exact shape and finite values;
    a stored copy of a tied head must equal the embedding. Raises CheckpointDamaged.
    """
    set_threads(choice.threads)
    with torch.device("meta"):
        backbone = Backbone(config, bidirectional=bidirectional)
    awaited = {key: tensor.shape for key, tensor in published_tensors(backbone).items()}
    names = layout(config)
    goes_to = {part: ours for ours, parts in names.items() for part in parts}
    pending: dict[str, dict[str, Tensor]] = {}
    tied_copy = None
    for key, tensor in tensors:
        if key == "lm_head.weight" and config.tied:
            tied_copy = tensor
            continue
        check(key, tensor, awaited.pop(key, None))
        ours = goes_to[key]
        if ours == "head.weight" and not head:
            backbone.head = None
            continue
        parts = pending.setdefault(ours, {})
        parts[key] = tensor
        if len(parts) == len(names[ours]):
            del pending[ours]
            fill(backbone, ours, torch.cat([parts[part] for part in names[ours]]), choice)
    if awaited:
        more = f" and {len(awaited) - 3} more" if len(awaited) > 3 else ""
        raise CheckpointDamaged(f"the weights lack {', '.join(sorted(awaited)[:3])}{more}")
    embedding = backbone.embedding
    if tied_copy is not None and not torch.equal(tied_copy.to(embedding), embedding):
        raise CheckpointDamaged("lm_head.weight differs from the embedding it should be tied to")
    backbone.packed, backbone.headless = choice.packed, not head
    if backbone.packed and head and config.tied:
        backbone.head = Int8Linear(backbone.embedding)
    return backbone.eval().requires_grad_(False)


def check(key: str, tensor: Tensor, shape: torch.Size | None) -> None:
    """Raise CheckpointDamaged unless `tensor` is finite and of the shape that is awaited."""
    if shape is None:
        raise CheckpointDamaged(f"the weights hold {key!r}, which this architecture lacks")
    if tensor.shape != shape:
        raise CheckpointDamaged(
            f"{key} has shape {tuple(tensor.shape)}; config.json asks for {tuple(shape)}"
        )
    if not torch.isfinite(tensor).all():
        raise CheckpointDamaged(f"{key} holds NaN or infinity")


def fill(backbone: Backbone, name: str, tensor: Tensor, choice: Choice) -> None:
    """Put one published tensor where it belongs, in the dtype or packing chosen."""
    owner_name, _, leaf = name.rpartition(".")
    owner = backbone.get_submodule(owner_name)
    if owner_name.endswith(".conv") and leaf == "weight":
        tensor = tensor.squeeze(1).t().contiguous()  # (hidden, 1, kernel) -> (kernel, hidden)
    packs = choice.packed and isinstance(owner, Linear) and leaf == "weight"
    if packs and not owner_name.endswith("gate"):
        parent = backbone.get_submodule(owner_name.rpartition(".")[0])
        # A head has the last word: it stays int8.
        weights = "int8" if name == "head.weight" else choice.weights
        layer = pack_linear(tensor, cast(Linear, owner).bias, weights)
        setattr(parent, owner_name.rpartition(".")[2], layer)
    else:
        keep = name == "embedding" and choice.packed  # only looked up, never multiplied
        dtype = tensor.dtype if keep else choice.torch_dtype
        dtype = torch.float32 if leaf == "expert_bias" else dtype
        setattr(owner, leaf, nn.Parameter(tensor.to(choice.device, dtype), requires_grad=False))


def published_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """A float backbone's weights under the published names (no prefix), for saving."""
    if backbone.packed:
        raise ValueError(
            "a backbone packed as int8 or int4 has no weights to save; open it with dtype='fp32'"
        )
    config = backbone.config
    ours = dict(backbone.named_parameters())
    out: dict[str, Tensor] = {}
    for name, parts in layout(config).items():
        tensor = ours[name].detach()
        if name.endswith(".conv.weight"):
            tensor = tensor.t().unsqueeze(1)
        rows = [tensor.shape[0]] if len(parts) == 1 else part_rows(name, config)
        for part, piece in zip(parts, tensor.split(rows), strict=True):
            out[part] = piece.contiguous()
    return out


def part_rows(name: str, config: BackboneConfig) -> list[int]:
    """Rows of each published tensor inside a fused one."""
    if name.endswith("qkv_proj.weight"):
        kv = config.kv_heads * config.head_dim
        return [config.heads * config.head_dim, kv, kv]
    experts = ".experts." in name and config.experts
    width = experts.width if experts else config.feed_forward
    return [width, width]
