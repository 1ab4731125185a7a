"""Merge small segments, drop deleted passages, give space back. Vectors are copied, not encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from retrieval import headers
from retrieval.codecs import CODECS
from retrieval.headers import Held
from retrieval.segments import Segment, SegmentWriter
from retrieval.storage import Entry, Stamp
from retrieval.writer import Writer

MOST_VECTORS = 1 << 22  # of a merged segment: larger ones are no faster to search
SMALL_VECTORS = 1 << 19  # of those that a run merges by itself
MANY = 16  # small segments that a run leaves alone
COPY_CHUNKS = 256  # between two looks at the progress

Tell = Callable[[int, int], None]  # passages copied, of how many


def compact(writer: Writer, tell: Tell = lambda done, total: None) -> None:
    """Bring the whole index into few segments without deleted passages, and shrink the catalog."""
    merge(writer, groups(writer.manifest.segments, MOST_VECTORS), tell)
    writer.catalog.shrink()


def tidy(writer: Writer) -> None:
    """After a run: many small segments become one, those that are mostly deleted are rewritten."""
    found = groups(writer.manifest.segments, SMALL_VECTORS)
    many = sum(len(group) for group in found if len(group) > 1) > MANY
    todo = [
        group
        for group in found
        if (many and len(group) > 1) or any(2 * entry.live <= entry.chunks for entry in group)
    ]
    merge(writer, todo)


def groups(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """Neighbours to be written as one: of one codec, up to `most` live vectors together.

    A segment that would stay as it is, alone and with nothing deleted, is in none.
    """
    found: list[list[Entry]] = []
    for entry in entries:
        group = found[-1] if found else []
        fits = sum(_vectors(e) for e in [*group, entry]) <= most
        if group and fits and group[-1].codec == entry.codec:
            group.append(entry)
        else:
            found.append([entry])
    return [group for group in found if len(group) > 1 or group[0].dead]


def _vectors(entry: Entry) -> int:
    """About how many vectors of a segment live."""
    return entry.tokens * entry.live // entry.chunks


def merge(
    writer: Writer, todo: Sequence[Sequence[Entry]], tell: Tell = lambda done, total: None
) -> None:
    """Write each group as one segment, and publish all of them at once."""
    manifest = writer.manifest
    if not todo or manifest.stamp is None:
        return
    number, total = manifest.next_segment, sum(e.live for group in todo for e in group)
    done, merged = 0, {}
    for group in todo:
        made = SegmentWriter(writer.folder, number, manifest.stamp.dim, CODECS[group[0].codec])
        try:
            for entry in group:
                done = _copy(writer, entry, manifest.stamp, made, done, lambda n: tell(n, total))
            merged[group[0].name] = _finished(writer, made, manifest.stamp)
        except BaseException:
            made.discard()
            raise
        number += 1
    kept = _replaced(manifest.segments, todo, merged)
    writer.put(replace(manifest, segments=tuple(kept), next_segment=number))


def _copy(
    writer: Writer, entry: Entry, stamp: Stamp, made: SegmentWriter, done: int,
    tell: Callable[[int], None],
) -> int:  # fmt: skip
    segment = Segment(writer.folder, entry, stamp.dim)
    rows = np.flatnonzero(segment.live)
    for first in range(0, len(rows), COPY_CHUNKS):
        part = rows[first : first + COPY_CHUNKS]
        made.copy(segment, part)
        done += len(part)
        tell(done)
    return done


def _finished(writer: Writer, made: SegmentWriter, stamp: Stamp) -> Entry:
    entry = made.finish()
    held = writer.catalog.held(entry.first, entry.last, writer.now)
    return headers.write(writer.folder, entry, stamp, [Held(*one) for one in held])


def _replaced(
    entries: Iterable[Entry], todo: Sequence[Sequence[Entry]], merged: dict[str, Entry]
) -> list[Entry]:
    """The entries with each group's first in the merged form and without its others."""
    gone = {entry.name for group in todo for entry in group}
    found = []
    for entry in entries:
        if entry.name in merged:
            found.append(merged[entry.name])
        elif entry.name not in gone:
            found.append(entry)
    return found
