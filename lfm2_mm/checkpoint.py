"""From a name to a folder: bundled, local, cached or fetched.

The only reader of environment variables. Knows nothing of what the weights mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lfm2_mm import registry
from lfm2_mm.errors import BadInput, NotAvailable, UnknownCheckpoint
from lfm2_mm.hub import Announce, Hub, Progress, size_of
from lfm2_mm.registry import Checkpoint
from lfm2_mm.weights import count_parameters, missing_files, read_tensors, tensor_keys, whole, write

__all__ = [
    "Cached",
    "Settings",
    "cached",
    "fetch",
    "locate",
    "parameters",
    "read_tensors",
    "remove",
    "settings",
    "tensor_keys",
    "write",
]

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Settings:
    """What the environment says; the variables and their meaning are those of huggingface_hub."""

    offline: bool  # HF_HUB_OFFLINE
    cache: Path  # HF_HUB_CACHE, or hub/ in HF_HOME, or in XDG_CACHE_HOME/huggingface
    endpoint: str | None  # HF_ENDPOINT; None: the public hub
    home: Path  # LFM2_MM_HOME, or lfm2-mm in XDG_CACHE_HOME: what we keep and can make again
    key: str | None = None  # LFM2_MM_API_KEY: of servers that are asked, and of our own


def settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment, now and not when the module was imported."""
    given = {key: value for key, value in environment.items() if value}
    caches = Path(given.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(given.get("HF_HOME", caches / "huggingface"))
    return Settings(
        offline=given.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"),
        cache=Path(given.get("HF_HUB_CACHE", home / "hub")).expanduser(),
        endpoint=given.get("HF_ENDPOINT"),
        home=Path(given.get("LFM2_MM_HOME", caches / "lfm2-mm")).expanduser(),
        key=given.get("LFM2_MM_API_KEY"),
    )


def locate(name: str | Path, *, offline: bool = False, fetch: bool = True) -> Path:
    """The folder of a checkpoint of our name, hub id or path; it holds config.json and all weights.

    What is neither bundled nor cached is downloaded, unless `fetch` is off or `offline` (or the
    environment) forbids it: then NotAvailable. Raises UnknownCheckpoint, CheckpointDamaged.
    """
    local = _local(name)
    if local is not None:
        return whole(local)
    row = _row(str(name))
    if row.bundled:
        return whole(ASSETS / row.bundled)
    here = _cached(row)
    if here is not None:
        return here
    if not fetch:
        raise NotAvailable(f"{row.name} is not on this machine; {_way_out(row)}")
    return _fetch(row, offline, None, None)


def fetch(
    name: str,
    *,
    offline: bool = False,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a checkpoint into the hub's cache; one that is here already is left as it is.

    `announce` is called with size and licence before the first byte, `progress` with bytes done and
    bytes of all. What an earlier call left half done is gone on with. Raises like `locate`.
    """
    row = _row(name)
    if row.bundled:
        return whole(ASSETS / row.bundled)
    return _cached(row) or _fetch(row, offline, announce, progress)


def remove(name: str) -> int:
    """Delete a cached checkpoint, half ones included; the number of bytes that became free."""
    row = _row(name)
    if row.repo is None:
        raise BadInput(f"{row.name} comes with the package and cannot be removed by itself")
    freed = _hub().remove(row.repo)
    if not freed:
        raise NotAvailable(f"{row.name} is not in {settings().cache}: nothing to remove")
    return freed


@dataclass(frozen=True)
class Cached:
    name: str
    path: Path
    bytes: int


def cached() -> list[Cached]:
    """The registry's checkpoints that lie whole in the hub's cache."""
    found = ((c, _cached(c)) for c in registry.TABLE)
    hub = _hub()
    return [Cached(c.name, p, size_of(hub.folder(c.repo))) for c, p in found if p and c.repo]


def parameters(row: Checkpoint) -> int | None:
    """The published count, or what the bundled file holds; None where neither is there."""
    folder = ASSETS / row.bundled if row.bundled else None
    if row.parameters is None and folder is not None and not missing_files(folder):
        return count_parameters(folder)
    return row.parameters


def _local(name: str | Path) -> Path | None:
    """The folder that `name` is the path of. A folder that only happens to be called like a
    checkpoint must hold a config.json to be preferred."""
    path = os.path.expanduser(name)
    if not os.path.isdir(path):  # False for what cannot be a path; pathlib may raise
        return None
    certain = isinstance(name, Path) or not registry.knows(name)
    return Path(path) if certain or os.path.isfile(os.path.join(path, "config.json")) else None


def _row(name: str) -> Checkpoint:
    """The registry's row, or one made for a hub id that the registry does not know."""
    if registry.knows(name) or not registry.is_hub_id(name):
        return registry.find(name)
    return Checkpoint(name, None, None, "", repo=name)


def _hub() -> Hub:
    now = settings()
    return Hub(now.cache, now.endpoint)


def _cached(row: Checkpoint) -> Path | None:
    """The copy in the cache, when it is whole (other programs may leave half ones)."""
    snapshot = _hub().snapshot(row.repo) if row.repo else None
    return snapshot if snapshot and not missing_files(snapshot) else None


def _fetch(
    row: Checkpoint, offline: bool, announce: Announce | None, progress: Progress | None
) -> Path:
    assert row.repo is not None
    if offline or settings().offline:
        raise NotAvailable(f"{row.name} is not on this machine and offline is set; {_way_out(row)}")
    try:
        return whole(_hub().fetch(row.repo, row.licence or None, announce, progress))
    except NotAvailable as error:
        raise NotAvailable(f"{error}; {_way_out(row)}") from error
    except UnknownCheckpoint as error:
        raise UnknownCheckpoint(f"{error}; {registry.suggestions(row.name)}") from error


def _way_out(row: Checkpoint) -> str:
    fetch = f"`lfm2-mm fetch {row.name}` brings it when the hub can be reached"
    if row.kind is None:
        names = ", ".join(c.name for c in registry.TABLE if c.bundled)
        return f"no folder of this path is here either; bundled: {names}; {fetch}"
    alternative = registry.bundled(row.kind)
    if alternative:
        return f"use the bundled {alternative.name}; {fetch}"
    return f"no {row.kind} checkpoint is bundled, `--model echo` shows the flow; {fetch}"
