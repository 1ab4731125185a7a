"""The only place that joins packages: a name and the flags -> a ready object."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_mm.errors import BadInput, IndexMismatch, IndexMissing, NotAvailable

if TYPE_CHECKING:
    from pathlib import Path

    from apps.service import Served, Service
    from audio import Speech
    from lfm2_mm.engine import Engine
    from lfm2_mm.exports.source import Source
    from lfm2_mm.registry import Kind
    from retrieval.encoder import Encoder
    from retrieval.index import Index
    from retrieval.shards import Settings, Workers
    from retrieval.stores.collection import Collection
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

    return retrieval.open(args.index, create=create, **_as_told(args))


def open_place(args: Namespace, *, create: bool = False) -> Index | Collection:
    """The index of `--index`, or the collection of `--store`."""
    if args.store is None:
        return open_index(args, create=create)
    from retrieval.stores.collection import open_collection

    return open_collection(args.store, create=create, **_as_told(args))


def parts_of(args: Namespace) -> Path:
    """Where workers leave what they encoded: beside the index, unless `--parts` says otherwise."""
    place = args.index or args.store.partition(":")[2]
    if not args.parts and "://" in place:
        raise BadInput(
            f"workers need a folder that all of them see, and {args.store} has none beside it: "
            "name one with --parts"
        )
    return Path(args.parts or f"{place.rstrip('/')}.parts").expanduser()


def workers_of(args: Namespace) -> Callable[[Settings], Workers]:
    """What starts the workers of `--ray`, or as many processes as `--workers` says."""
    if args.ray is not None:
        from retrieval import cluster

        cluster.connect(args.ray)
        return lambda settings: cluster.Actors(args.workers or cluster.processors(), settings)
    from retrieval.processes import Processes

    return lambda settings: Processes(args.workers, settings)


def _as_told(args: Namespace) -> dict[str, Any]:
    """How an index is opened, by the flags that a verb has."""
    settings = {name: getattr(args, name, None) for name in ("model", "codec", "pool")}
    how = {"device": args.device, "dtype": args.dtype, "offline": args.offline}
    if url := getattr(args, "encoder_url", None):
        from retrieval.holding import DEFAULT_MODEL
        from retrieval.remote_encoder import open_remote

        name = settings["model"] or DEFAULT_MODEL
        settings["model"] = open_remote(url, name, key=args.encoder_key, **how)
    return {**settings, **how}


def open_encoder(args: Namespace) -> Encoder:
    """The late-interaction encoder of `--model`."""
    from retrieval import encoder

    return encoder.open_encoder(
        args.model, device=args.device, dtype=args.dtype, offline=args.offline
    )


def open_chat(args: Namespace) -> Engine:
    """The engine of `--model`, or of the first chat checkpoint that needs no download; at
    `--base-url` the server's first model.

    Raises NotAvailable, naming what to fetch, where there is neither.
    """
    from lfm2_mm.engine import open_engine

    base_url, engine = getattr(args, "base_url", None), getattr(args, "engine", "auto")
    elsewhere = base_url is not None or engine == "remote"
    return open_engine(
        args.model or ("" if elsewhere else _checkpoint_here("chat")),
        engine=engine,
        base_url=base_url,
        api_key=args.api_key if hasattr(args, "base_url") else None,
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
        active_experts=getattr(args, "active_experts", None),
    )


def is_elsewhere(args: Namespace) -> bool:
    """Whether the flags name a server that is to answer."""
    from lfm2_mm.engine import kind_of

    base_url, engine = getattr(args, "base_url", None), getattr(args, "engine", "auto")
    return engine == "remote" or kind_of(args.model or "", base_url) == "remote"


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


def open_service(args: Namespace) -> Service:
    """What `--models` and `--index` name, opened: one checkpoint of every kind, and the indexes.

    A kind that is not named is taken from what needs no download, or left out where nothing is.
    `echo` is served beside them. Raises BadInput, IndexMissing, and what opening raises.
    """
    from apps.service import Service

    named = by_kind(args.models)
    models = [served for kind in OPENED if (served := _serve(args, kind, named.get(kind)))]
    if all(model.name != "echo" for model in models):
        models.append(_served("echo", "chat", open_chat(with_model(args, "echo"))))
    encoder = next((m.engine for m in models if m.kind == "colbert"), None)
    return Service(models, open_indexes(Path(args.index), encoder) if args.index else {})


def _see(args: Namespace) -> Chat:
    from vision import TokenBudget

    return open_see(args, TokenBudget())


OPENED: dict[Kind, Callable[[Namespace], Any]] = {
    "chat": open_chat,
    "vision": _see,
    "speech": open_speech,
    "colbert": open_encoder,
}


def _serve(args: Namespace, kind: Kind, name: str | None) -> Served | None:
    try:
        name = name or _checkpoint_here(kind)
    except NotAvailable:
        return None
    return _served(name, kind, OPENED[kind](with_model(args, name)))


def _served(name: str, kind: Kind, engine: Any) -> Served:
    from apps.lanes import Lane
    from apps.service import Served
    from lfm2_mm import registry

    shown = registry.find(name).name if registry.knows(name) else Path(name).name
    if "://" in name:
        shown = str(engine.name)  # as the server calls it
    return Served(shown, kind, engine, Lane(shown), int(time.time()))


def open_indexes(folder: Path, encoder: Encoder | None = None) -> dict[str, Index]:
    """The index in `folder`, or the indexes in it, by name; an empty folder becomes one.

    Each is opened with `encoder` if that made it, else with its own. Raises IndexMissing where
    something else is there.
    """
    import retrieval

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {
            Path(os.path.realpath(folder)).name: retrieval.open(folder, model=encoder, create=True)
        }
    found = [one for one in (folder, *sorted(folder.glob("*/"))) if _is_index(one)]
    if not found:
        raise IndexMissing(
            f"{folder} is no index and holds none; `lfm2-mm index PATH --index {folder}` makes one"
        )
    chosen = found[:1] if found[0] == folder else found
    return {Path(os.path.realpath(one)).name: _opened(one, encoder) for one in chosen}


def _opened(folder: Path, encoder: Encoder | None) -> Index:
    import retrieval

    try:
        return retrieval.open(folder, model=encoder)
    except IndexMismatch:
        index = retrieval.open(folder)
        index.info()  # one of another version cannot be served at all
        return index


def _is_index(folder: Path) -> bool:
    import retrieval

    try:
        retrieval.open(folder).close()
    except (IndexMissing, BadInput):
        return False
    return True


def with_model(args: Namespace, name: str | None) -> Namespace:
    """The flags, as if this model had been given."""
    return Namespace(**{**vars(args), "model": name})


def open_source(args: Namespace) -> Source:
    """The checkpoint `name` in float, to be exported. Raises BadInput for what no target takes."""
    from lfm2_mm import checkpoint, registry
    from lfm2_mm.exports import source
    from retrieval import exporting as colbert
    from vision import exporting as vision

    folder = checkpoint.locate(args.name, offline=args.offline)
    name = registry.find(args.name).name if registry.knows(args.name) else folder.name
    kind = _kind_of_folder(folder)
    if kind == "speech":
        raise BadInput(
            f"{name} is a speech checkpoint: its encoder, depth transformer and codec have no "
            "place in these files; exported are text, vision and colbert ones"
        )
    opener = {"colbert": colbert.open_source, "vision": vision.open_source}
    return opener.get(kind, source.open_source)(folder, name, args.dtype)


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
    """By the registry, or by what the files of a folder or of a cached checkpoint hold; a server's
    address can chat."""
    from lfm2_mm import checkpoint, registry
    from lfm2_mm.engine import kind_of

    if kind_of(name) != "native":
        return "chat"
    kind = registry.find(name).kind if registry.knows(name) else None
    return kind or _kind_of_folder(checkpoint.locate(name, fetch=False))


def _kind_of_folder(folder: Path) -> Kind:
    from lfm2_mm.weights import read_json

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
    raise nothing_here(kind)


def nothing_here(kind: Kind) -> NotAvailable:
    """That no checkpoint of this kind is on this machine, and what to do."""
    return NotAvailable(
        f"no {kind} checkpoint on this machine: `lfm2-mm fetch {SUGGESTED[kind]}` downloads the "
        f"smallest, --model takes another name or a folder, and {WITHOUT[kind]}"
    )
