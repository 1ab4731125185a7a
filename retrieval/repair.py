"""Mend an index: keep what is whole, encode again what is not, say what is lost.

Three things must agree: the catalog (texts), the segments (vectors), the manifest. A document whose
text is whole is kept, and encoded again where its vectors are not; one whose text is damaged is
read again from its file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lfm2_mm.errors import IndexDamaged, LfmError
from retrieval import headers, storage
from retrieval.catalog import Catalog
from retrieval.codecs import CODECS
from retrieval.files import path_of
from retrieval.headers import Header, Held
from retrieval.rows import NewDocument
from retrieval.segments import Segment, SegmentWriter, sweep, verify
from retrieval.storage import CATALOG, MANIFEST, SEGMENTS, SUMS, Entry, Manifest, Stamp
from retrieval.types import Damage, Skipped
from retrieval.update import Run, bring, look_at
from retrieval.writer import Incoming, Writer

REST = "catalog.sqlite.rest"  # what is whole, while it is being gathered


@dataclass(frozen=True)
class Work:
    """What is left to do once manifest, catalog and segments are sound again."""

    documents: tuple[int, ...] = ()  # to be encoded again from their stored texts
    sources: tuple[str, ...] = ()  # to be read again


def repair(folder: Path, damaged: Sequence[Damage]) -> Work:
    """Bring manifest, catalog and segments to one state; the caller holds the lock.

    Stopped at any moment it can be run again. Raises IndexMismatch for another version's index.
    """
    manifest = _manifest(folder)
    found = list(_headers(folder))
    lost: list[str] = []
    if manifest is None or any(d.file in (CATALOG, SUMS, MANIFEST) for d in damaged):
        manifest, lost = _gather(folder, manifest, found)
    with contextlib.closing(Catalog(folder)) as catalog:
        catalog.recover(manifest.generation)
        entries, number = _segments(folder, manifest, catalog)
        documents, chunks, tokens = catalog.counts(manifest.generation)
        after = replace(
            manifest, generation=manifest.generation + 1, segments=tuple(entries),
            documents=documents, chunks=chunks, tokens=tokens, next_segment=number,
        )  # fmt: skip
        catalog.commit(after.generation, (), ())
        storage.publish(folder, after)
        catalog.purge(after.generation)
        sweep(folder, entries)
        bare = _without_vectors(folder, after, catalog)
    return Work(tuple(bare), tuple(lost))


def restore(run: Run[Writer], work: Work) -> None:
    """Encode again, read again; what cannot be is told in the run."""
    writer = run.writer
    for document in work.documents:
        found, known = writer.catalog.whole(document), None
        if found:
            known = writer.known(found.source)
        if found and known and known.id == document:
            writer.add(_incoming(found), known)
    for source in work.sources:
        run.advance(source=source)
        path = path_of(source)
        if path.is_file():
            bring(run, look_at(path))
        else:
            why = "its text was damaged and there is no such file: it is no longer in the index"
            run.skipped.append(Skipped(source, why))


def _incoming(d: NewDocument) -> Incoming:
    return Incoming(d.source, d.kind, d.title, d.sha256, d.chunks, d.meta, d.size, d.mtime_ns)


# ---- what is there --------------------------------------------------------------------------


def _manifest(folder: Path) -> Manifest | None:
    """The published state, if it can be read."""
    try:
        manifest = storage.load(folder)
    except IndexDamaged:
        return None
    return manifest if manifest.generation else None


def _headers(folder: Path) -> Iterator[Header]:
    """What the segments that can be read say of themselves, in the order of their names."""
    for path in sorted((folder / SEGMENTS).glob("*.json")):
        with contextlib.suppress(ValueError, OSError, TypeError, KeyError):
            yield headers.read(folder, path.stem)


def _guessed(folder: Path, found: Sequence[Header]) -> Manifest:
    """A manifest in place of the lost one: the newest segments, of which no two share an id."""
    entries: list[Entry] = []
    for header in reversed(found):
        entry = header.entry
        if all(entry.last < e.first or e.last < entry.first for e in entries):
            entries.append(entry)
    with _opened(folder) as catalog:
        generation, ids = (1, [0]) if catalog is None else _told_by(catalog)
    stamp = found[-1].stamp if found else None
    last = max([0, *ids, *(e.last for e in entries)])
    entries.sort(key=lambda entry: entry.first)
    return Manifest(generation, stamp, 0, 0, 0, last + 1, _next_number(folder), tuple(entries))


def _told_by(catalog: Catalog) -> tuple[int, list[int]]:
    """The last generation and the ids of the last passages, as far as the catalog can tell."""
    with contextlib.suppress(LfmError):
        return max(1, catalog.last()), catalog.last_ids()
    return 1, [0]


def _next_number(folder: Path) -> int:
    stems = {path.stem for path in (folder / SEGMENTS).glob("*") if path.stem.isdecimal()}
    return 1 + max([0, *map(int, stems)])


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Catalog | None]:
    """The catalog, or None where it is missing or no database."""
    try:
        catalog = Catalog(folder)
    except LfmError:
        yield None
        return
    try:
        yield catalog
    finally:
        catalog.close()


# ---- the catalog ----------------------------------------------------------------------------


def _gather(
    folder: Path, manifest: Manifest | None, found: Sequence[Header]
) -> tuple[Manifest, list[str]]:
    """A new catalog of all that is whole in the old one; the sources of what is not."""
    known = manifest or _guessed(folder, found)
    sources = {held.id: held.source for header in found for held in header.documents}
    for left in folder.glob(f"{REST}*"):  # and the journals of a repair that was killed
        left.unlink()
    with _opened(folder) as old:
        ids, listed = _candidates(old, known, sources, whole=manifest is not None)
        with contextlib.closing(Catalog(folder, create=True, name=REST)) as new:
            kept: dict[str, int] = {}
            lost: list[int] = []
            new.commit(known.generation, _whole(old, ids, kept, lost), ())
        if old and listed:
            with contextlib.suppress(LfmError):
                old.checkpoint()  # so that nothing is lost if the next lines are the last
    for suffix in ("-wal", "-shm"):
        Path(f"{folder / CATALOG}{suffix}").unlink(missing_ok=True)
    os.replace(folder / REST, folder / CATALOG)
    storage.flush_folder(folder)
    names = {sources.get(document, f"document {document}") for document in lost}
    return known, sorted(names - set(kept))


def _candidates(
    old: Catalog | None, manifest: Manifest, sources: Iterable[int], *, whole: bool
) -> tuple[list[int], bool]:
    """Documents that should be there, ascending, and whether the catalog could list its own.

    With a whole manifest, those it does not tell to be deleted; else those that the catalog has, or
    where it cannot say that, all that the segments ever held.
    """
    listed: list[int] | None = None
    with contextlib.suppress(LfmError):
        if old is not None:
            listed = old.listed() if whole else old.alive(manifest.generation)
    if whole:
        every = {*sources, *(listed or ())}
        return sorted(i for i in every if _lives(manifest, i)), listed is not None
    return (sorted(sources), False) if listed is None else (listed, True)


def _lives(manifest: Manifest, document: int) -> bool:
    return any(
        entry.first <= document <= entry.last
        and not any(first <= document < last for first, last in entry.dead)
        for entry in manifest.segments
    )


def _whole(
    old: Catalog | None, ids: Iterable[int], kept: dict[str, int], lost: list[int]
) -> Iterator[NewDocument]:
    """The documents that are as they were written; the others go to `lost`."""
    for document in ids:
        found = old.whole(document) if old else None
        if found is None or found.source in kept:
            lost.append(document)
        else:
            kept[found.source] = document
            yield found


# ---- the segments ---------------------------------------------------------------------------


def _segments(folder: Path, manifest: Manifest, catalog: Catalog) -> tuple[list[Entry], int]:
    """What can be kept of the segments, and the number of the next one."""
    found: list[Entry] = []
    number = max(manifest.next_segment, _next_number(folder))
    for entry in manifest.segments if manifest.stamp else ():
        held = [Held(*one) for one in catalog.held(entry.first, entry.last, manifest.generation)]
        try:
            segment = Segment(folder, entry, manifest.stamp.dim) if manifest.stamp else None
        except (IndexDamaged, OSError):
            continue
        if segment is None or not held:
            continue
        if not any(verify(folder, entry)):
            found.append(entry.without(_foreign(segment, held)))
            continue
        for group in _sound(segment, held):
            found.append(_rewritten(folder, segment, manifest.stamp, number, group))
            number += 1
    return [entry for entry in found if entry.live], number


def _foreign(segment: Segment, held: Sequence[Held]) -> list[tuple[int, int]]:
    """Ranges of live passages that no document has."""
    ids = segment.ids[segment.live]
    ours = np.zeros(len(ids), dtype=bool)
    for one in held:
        ours[slice(*np.searchsorted(ids, (one.id, one.id + one.chunks)))] = True
    return [(chunk, chunk + 1) for chunk in ids[~ours].tolist()]


def _sound(segment: Segment, held: Sequence[Held]) -> Iterator[list[Held]]:
    """Neighbouring documents with sound vectors; the next group begins behind one without.

    So no new segment spans the ids of a document whose vectors are elsewhere, or nowhere.
    """
    bad = np.zeros(len(segment.ids), dtype=bool)
    bad[segment.damaged()] = True
    for sound, group in itertools.groupby(held, lambda one: not bad[_rows(segment, one)].any()):
        if sound:
            yield list(group)


def _rows(segment: Segment, held: Held) -> np.ndarray:
    return np.arange(*np.searchsorted(segment.ids, (held.id, held.id + held.chunks)))


def _rewritten(
    folder: Path, segment: Segment, stamp: Stamp | None, number: int, group: Sequence[Held]
) -> Entry:
    assert stamp is not None
    writer = SegmentWriter(folder, number, stamp.dim, CODECS[segment.entry.codec])
    for held in group:
        writer.copy(segment, _rows(segment, held))
    return headers.write(folder, writer.finish(), stamp, group)


def _without_vectors(folder: Path, manifest: Manifest, catalog: Catalog) -> list[int]:
    """Documents of which no segment holds the passages."""
    stored = [np.empty(0, dtype=np.int64)]
    for entry in manifest.segments:
        segment = Segment(folder, entry, manifest.stamp.dim if manifest.stamp else 0)
        stored.append(segment.ids[segment.live])
    alive = np.array(catalog.alive(manifest.generation), dtype=np.int64)
    bare: list[int] = alive[~np.isin(alive, np.concatenate(stored))].tolist()
    return bare
