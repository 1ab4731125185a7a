"""The only place that joins packages: a name and the flags -> a ready object."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lfm2_mm.errors import BadInput, NotAvailable

if TYPE_CHECKING:
    from audio import Speech
    from lfm2_mm.engine import Engine
    from lfm2_mm.registry import Kind
    from retrieval.encoder import Encoder
    from retrieval.index import Index
    from vision import Chat, TokenBudget

SUGGESTED = {
    "chat": "LFM2-350M",
    "vision": "LFM2-VL-450M",
    "speech": "LFM2.5-Audio-1.5B",
}  # the smallest published ones
WITHOUT = {
    "chat": "`--model echo` shows the flow",
    "vision": "`see --plan` tells what pictures would cost",
    "speech": "`lfm2-mm doctor` tells what is here",
}


def open_index(args: Namespace, *, create: bool = False) -> Index:
    """The index of `--index`, opened as the other flags say. The encoder loads when first used."""
    import retrieval

    return retrieval.open(
        args.index,
        model=getattr(args, "model", None),
        create=create,
        codec=getattr(args, "codec", None),
        pool=getattr(args, "pool", None),
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
    )


def open_encoder(args: Namespace) -> Encoder:
    """The late-interaction encoder of `--model`."""
    from retrieval import encoder

    return encoder.open_encoder(
        args.model, device=args.device, dtype=args.dtype, offline=args.offline
    )


def open_chat(args: Namespace) -> Engine:
    """The engine of `--model`, or of the first chat checkpoint that needs no download.

    Raises NotAvailable, naming what to fetch, where there is neither.
    """
    from lfm2_mm.engine import open_engine

    return open_engine(
        args.model or _checkpoint_here("chat"),
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
        active_experts=args.active_experts,
    )


def open_see(args: Namespace, budget: TokenBudget) -> Chat:
    """The engine of `--model`, or of the first vision checkpoint that needs no download.

    Raises NotAvailable, naming what to fetch, where there is neither.
    """
    import vision

    return vision.open(
        args.model or _checkpoint_here("vision"),
        budget=budget,
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
    )


def open_speech(args: Namespace) -> Speech:
    """The speech checkpoint of `--model`, or the first that needs no download.

    Raises NotAvailable, naming what to fetch, where there is neither.
    """
    import audio

    return audio.open(
        args.model or _checkpoint_here("speech"),
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
    )


def by_kind(names: Sequence[str]) -> dict[Kind, str]:
    """Checkpoints by what each is for. Raises BadInput for two of one kind, or an unknown kind."""
    found: dict[Kind, str] = {}
    for name in names:
        kind = _kind_of(name)
        if kind in found:
            raise BadInput(
                f"{found[kind]} and {name} are both {kind} checkpoints; name one of them"
            )
        found[kind] = name
    return found


def _kind_of(name: str) -> Kind:
    """By the registry, or by what the files of a folder or of a cached checkpoint hold."""
    from lfm2_mm import checkpoint, registry
    from lfm2_mm.weights import read_json

    kind = registry.find(name).kind if registry.knows(name) else None
    if kind is not None:
        return kind
    folder = checkpoint.locate(name, fetch=False)
    config = read_json(folder / "config.json")
    if "vision_config" in config:
        return "vision"
    if "depthformer" in config:
        return "speech"
    return "colbert" if (folder / "modules.json").is_file() else "chat"


def _checkpoint_here(kind: Kind) -> str:
    from lfm2_mm import checkpoint, registry

    here = {entry.name for entry in checkpoint.cached()}
    for known in registry.TABLE:
        if known.kind == kind and (known.bundled or known.name in here):
            return known.name
    raise NotAvailable(
        f"no {kind} checkpoint on this machine: `lfm2-mm fetch {SUGGESTED[kind]}` downloads the "
        f"smallest, --model takes another name or a folder, and {WITHOUT[kind]}"
    )
