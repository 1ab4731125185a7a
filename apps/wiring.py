"""The only place that joins packages: a name and the flags -> a ready object."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from lfm2_mm.errors import NotAvailable

if TYPE_CHECKING:
    from lfm2_mm.engine import Engine
    from retrieval.encoder import Encoder
    from retrieval.index import Index

SUGGESTED_CHAT = "LFM2-350M"  # the smallest published one


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
        args.model or _chat_checkpoint_here(),
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
        active_experts=args.active_experts,
    )


def _chat_checkpoint_here() -> str:
    from lfm2_mm import checkpoint, registry

    here = {entry.name for entry in checkpoint.cached()}
    for known in registry.TABLE:
        if known.kind == "chat" and (known.bundled or known.name in here):
            return known.name
    raise NotAvailable(
        f"no chat checkpoint on this machine: `lfm2-mm fetch {SUGGESTED_CHAT}` downloads the "
        "smallest, --model takes another name or a folder, and `--model echo` shows the flow"
    )
