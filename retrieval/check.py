"""Is an index as it was written? Reads every byte and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lfm2_mm.errors import IndexDamaged
from retrieval import seal, storage
from retrieval.catalog import Catalog, lost_manifest
from retrieval.segments import Segment, verify
from retrieval.storage import CATALOG, MANIFEST, SEGMENTS, Manifest
from retrieval.types import Damage

ATTEMPTS = 5


def check(folder: Path) -> list[Damage]:
    """All that is damaged. A state that a writer replaces meanwhile is looked at again.

    Raises IndexMissing where there is no index, IndexMismatch for one of a newer version, LfmError
    where the disk is too full to look.
    """
    storage.require(folder, create=False)
    for _ in range(ATTEMPTS):
        try:
            manifest = storage.load(folder)
        except IndexDamaged as error:
            return [Damage(MANIFEST, str(error))]
        if not manifest.generation:
            lost = lost_manifest(folder) and not storage.load(folder).generation
            return [Damage(MANIFEST, "is missing")] if lost else []
        damaged = list(_damages(folder, manifest))
        if not damaged or storage.load(folder).generation == manifest.generation:
            break
    return damaged


def _damages(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    broken = [damage for entry in manifest.segments for damage in verify(folder, entry)]
    yield from broken
    if different := seal.compare(folder):
        yield different
    try:
        catalog = Catalog(folder, reads=True)
    except IndexDamaged as error:
        yield Damage(CATALOG, str(error))
        return
    try:
        rotten = list(catalog.verify())
        yield from rotten
        if not rotten and not different:
            yield from _disagreements(folder, manifest, catalog, whole=not broken)
    except IndexDamaged as error:
        yield Damage(CATALOG, str(error))
    finally:
        catalog.close()


def _disagreements(
    folder: Path, manifest: Manifest, catalog: Catalog, *, whole: bool
) -> Iterator[Damage]:
    """Where manifest, catalog and segments, each sound by itself, do not tell the same."""
    now = manifest.generation
    with catalog.transaction():
        if not catalog.purged() <= now <= catalog.last():
            yield Damage(CATALOG, f"is of generation {catalog.last()}; the manifest is of {now}")
            return
        counted = catalog.counts(now)
        listed = catalog.select((), now)
    told = (manifest.documents, manifest.chunks, manifest.tokens)
    if counted != told:
        yield Damage(
            CATALOG, f"holds {counted} documents, passages and tokens; the manifest tells {told}"
        )
    if not whole or manifest.stamp is None:
        return
    stored = [np.empty(0, dtype=np.int64)]
    for entry in manifest.segments:
        segment = Segment(folder, entry, manifest.stamp.dim)
        stored.append(segment.ids[segment.live])
    if not np.array_equal(np.sort(np.concatenate(stored)), listed):
        yield Damage(SEGMENTS, f"hold vectors of other passages than {CATALOG} lists")
