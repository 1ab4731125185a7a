"""What is asked of an index, compared with what can be. Opens nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lfm2_mm.errors import BadInput
from retrieval import filters, storage
from retrieval.codecs import CODECS, DEFAULT
from retrieval.storage import Stamp
from retrieval.types import MODES

if TYPE_CHECKING:
    from retrieval.encoder import Encoder


def check_question(query: str, k: int, mode: str) -> None:
    """Raise BadInput for an unknown mode, k below 1, or an empty query."""
    if mode not in MODES:
        raise BadInput(f"no search mode {mode!r}; known: {', '.join(MODES)}")
    if k < 1:
        raise BadInput(f"{k} results were asked for; ask for 1 or more")
    if not query.strip():
        raise BadInput("the query is empty: say what to look for")


def check_by_meaning(address: str, mode: str) -> None:
    """Raise BadInput for a search that no store answers."""
    if mode != "colbert":
        raise BadInput(
            f"{address} is searched by meaning (mode colbert), not {mode}: words are looked up in "
            "an index folder only (`lfm2-mm copy` makes one)"
        )


def check_recall(k: int, target: float | None) -> None:
    """Raise BadInput for a recall that cannot be measured or reached."""
    if k < 1:
        raise BadInput(f"recall of the {k} best was asked for; ask for 1 or more")
    if target is not None and not 0 <= target <= 1:
        raise BadInput(f"a recall of {target:g} was asked for; it lies in 0 to 1")


def check_effort(effort: int | None) -> None:
    """Raise BadInput for a number of passages that no search can score."""
    if effort is not None and effort < 1:
        raise BadInput(f"an effort of {effort} passages; give 1 or more, or None for the usual")


def require_keeping(place: object, stamp: Stamp | None, keeping: Mapping[str, Any]) -> None:
    """Raise BadInput for settings that cannot be, or that are not those of the stamp."""
    if (codec := keeping.get("codec", DEFAULT)) not in CODECS:
        raise BadInput(f"no codec {codec!r}; known: {', '.join(CODECS)}")
    if (pool := keeping.get("pool", 1)) < 1:
        raise BadInput(f"a pooling factor is 1 (none) or more; got {pool}")
    for name, value in keeping.items() if stamp else ():
        if value != getattr(stamp, name):
            raise BadInput(
                f"{place} was made with {name} {getattr(stamp, name)}, not {value}: "
                "index again into a new folder"
            )


def require_model(
    place: object, stamp: Stamp, model: str | os.PathLike[str] | Encoder, offline: bool
) -> None:
    """Raise IndexMismatch unless `model` made the vectors; a name is looked up, not loaded."""
    if not isinstance(model, (str, os.PathLike)):
        storage.require_same(place, stamp, model)
        return
    from retrieval.encoder import fingerprint_of

    name = os.fspath(model)
    found = fingerprint_of(name, offline=offline)
    storage.require_same(place, stamp, replace(stamp, name=name, fingerprint=found))


def checked_meta(meta: Mapping[str, str]) -> dict[str, str]:
    """Metadata whose keys can be told from the filters that are always there."""
    meta = {str(key): str(value) for key, value in meta.items()}
    for key in meta:
        if not key or key in filters.BUILT_IN or not set("<>=").isdisjoint(key):
            raise BadInput(
                f"{key!r} cannot be a metadata key; these are taken: {', '.join(filters.BUILT_IN)},"
                " and no key holds <, > or ="
            )
        if not filters.is_text(f"{key}{meta[key]}"):
            raise BadInput(f"metadata {key!r}={meta[key]!r} is not UTF-8, which it must be")
    return meta
