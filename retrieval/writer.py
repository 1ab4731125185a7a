"""Encode documents in batches and publish them, a segment at a time. Knows no files and no formats.

A publication is: vectors durable, then rows committed to SQLite, then the manifest renamed, then
what it replaced removed. Stopped at any moment, the index is the old or the new one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lfm2_mm.errors import LfmError
from retrieval import headers, storage
from retrieval.catalog import Catalog, lost_manifest
from retrieval.codecs import CODECS, DEFAULT
from retrieval.headers import Held
from retrieval.pooling import pool
from retrieval.rows import Known, NewChunk, NewDocument, Touched, Unread
from retrieval.segments import Segment, SegmentWriter, sweep
from retrieval.storage import Manifest, Stamp

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

ENCODE_CHUNKS = 64  # given to the encoder at once: enough to sort by length, soon interrupted
SEGMENT_CHUNKS = 4096  # at most, but for one document that has more
SEGMENT_SECONDS = 15.0  # work that a kill may lose, or a twentieth of the run where that is more
NOTES = (
    1000  # remembered at once: a disk's flush for each file would take longer than looking at it
)


@dataclass(frozen=True)
class Keeping:
    """How a new index keeps its vectors."""

    codec: str = DEFAULT
    pool: int = 1  # vectors of a passage that become one


USUAL = Keeping()


@dataclass(frozen=True)
class Incoming:
    """A document whose passages are to be encoded."""

    source: str
    kind: str
    title: str
    sha256: str
    chunks: Sequence[NewChunk]
    meta: Mapping[str, str]
    size: int | None = None
    mtime_ns: int | None = None


@dataclass
class Tally:
    """What was done since the writer was opened, waiting work not counted."""

    added: int = 0
    updated: int = 0
    removed: int = 0
    chunks: int = 0
    tokens: int = 0


def passage(chunk: NewChunk) -> str:
    """The text that is encoded for a passage."""
    return f"{chunk.context}\n{chunk.text}" if chunk.context else chunk.text


@contextlib.contextmanager
def writing(
    folder: Path, encoder: Callable[[], Encoder], keeping: Keeping = USUAL
) -> Iterator[Writer]:
    """Be the index's only writer; publish at the end, and on Ctrl-C what was finished by then.

    keeping: how a new index keeps its vectors.

    Raises IndexBusy where another one is, LfmError where the disk is full.
    """
    storage.require(folder, create=True)
    with disk_told(folder), storage.writing(folder):
        writer = Writer(folder, encoder, keeping)
        try:
            yield writer
            writer.commit()
            writer.catalog.seal()
        except KeyboardInterrupt:
            writer.commit_finished()
            writer.catalog.seal()
            raise
        finally:
            writer.close()


class Writer:
    """Made by `writing`, which holds the lock."""

    def __init__(self, folder: Path, encoder: Callable[[], Encoder], keeping: Keeping) -> None:
        self.folder = folder
        self.manifest = storage.load(folder)
        if not self.manifest.generation and lost_manifest(folder):
            raise storage.without_manifest(folder)
        # A published index without its catalog is damaged, not new.
        self.catalog = Catalog(folder, create=self.manifest.generation == 0)
        self.catalog.recover(self.manifest.generation)
        sweep(folder, self.manifest.segments)
        self.tally = Tally()
        self.progress: Callable[[int], None] = lambda chunks: None
        self._encoder = encoder
        self._keeping = keeping
        self._started = self._published = time.monotonic()
        self._segment: SegmentWriter | None = None
        self._made_by: Stamp | None = None  # of the segment that is being written
        self._waiting: list[tuple[Incoming, Known | None]] = []
        self._finished: list[tuple[NewDocument, Known | None]] = []
        self._gone: list[Known] = []
        self._touched: list[Touched] = []
        self._unread: list[Unread] = []
        self._next_id = self.manifest.next_id
        self._publishing = False

    @property
    def now(self) -> int:
        return self.manifest.generation

    def expect(self, sources: Iterable[str]) -> None:
        """Sources that will be asked for. Asking SQLite for one at a time costs no more."""

    def known(self, source: str) -> Known | None:
        """What is published of a source."""
        return self.catalog.find(source, self.now)

    def add(self, document: Incoming, replaces: Known | None = None) -> None:
        """Encode a document, now or with the next ones; each source at most once a run."""
        self._waiting.append((document, replaces))
        if sum(len(d.chunks) for d, _ in self._waiting) >= ENCODE_CHUNKS:
            self._encode()
        elapsed = time.monotonic() - self._started
        since = time.monotonic() - self._published
        large = self._segment is not None and len(self._segment) >= SEGMENT_CHUNKS
        if large or since > max(SEGMENT_SECONDS, elapsed / 20):
            self.commit()

    def adopt(
        self, stamp: Stamp, segment: Segment, documents: Sequence[tuple[NewDocument, Known | None]]
    ) -> None:
        """Take documents over whose vectors another index holds, byte for byte, under new ids.

        segment: holds them under the ids they come with; stamp: what made it, as this index.
        """
        if not documents:
            return
        self._encode()
        if self._segment is None:
            self._begin(self.manifest.stamp or stamp)
        assert self._segment is not None
        ranges = [(d.id, d.id + len(d.chunks)) for d, _ in documents]
        rows = [np.arange(*np.searchsorted(segment.ids, one)) for one in ranges]
        self._segment.copy(segment, np.concatenate(rows), self._next_id)
        for document, replaces in documents:
            self._finish(replace(document, id=self._next_id), replaces)

    def take(
        self, stamp: Stamp, document: NewDocument, rows: Sequence[np.ndarray],
        replaces: Known | None,
    ) -> None:  # fmt: skip
        """Take one document over whose rows come from elsewhere, under new ids.

        rows: for each passage (T, row_bytes) uint8; stamp: what made them, as this index.
        """
        self._encode()
        if self._segment is None:
            self._begin(self.manifest.stamp or stamp)
        assert self._segment is not None
        for place, one in enumerate(rows):
            self._segment.put(self._next_id + place, one)
        self._finish(replace(document, id=self._next_id), replaces)
        if len(self._segment) >= SEGMENT_CHUNKS:
            self.commit()

    def remove(self, known: Known) -> None:
        """Take a document away with the next publication."""
        self._gone.append(known)

    def touch(
        self, known: Known, size: int | None, mtime_ns: int | None, meta: Mapping[str, str]
    ) -> None:
        """Note time and metadata of a document that stays as it is."""
        self._touched.append(Touched(known.id, size, mtime_ns, meta))
        self._note(NOTES)

    def skip(self, source: str, size: int, mtime_ns: int, why: str) -> None:
        """Remember that a file in this state cannot be read."""
        self._unread.append(Unread(source, size, mtime_ns, why))
        self._note(NOTES)

    def commit(self) -> None:
        """Encode what waits, and publish."""
        self._encode()
        self._publish()

    def commit_finished(self) -> None:
        """Publish what is encoded, drop what waits; not if this publication was interrupted."""
        if self._publishing:
            return
        self._waiting.clear()
        if self._segment and not self._finished:
            self._segment.discard()
            self._segment = None
        if self._segment:
            self._segment.cut(sum(len(d.chunks) for d, _ in self._finished))
        self._publish()

    def close(self) -> None:
        if self._segment:
            self._segment.discard()
        self.catalog.close()

    def _encode(self) -> None:
        """Encode all that waits, ENCODE_CHUNKS at a time however long a document is."""
        encoded = 0  # passages of the first waiting document that are in the segment
        queue = [chunk for document, _ in self._waiting for chunk in document.chunks]
        for first in range(0, len(queue), ENCODE_CHUNKS):
            texts = [passage(chunk) for chunk in queue[first : first + ENCODE_CHUNKS]]
            self._append(self._encoder().encode_documents(texts, self.progress))
            encoded += len(texts)
            while self._waiting and encoded >= len(self._waiting[0][0].chunks):
                encoded -= len(self._waiting[0][0].chunks)
                self._finish(*self._encoded(*self._waiting.pop(0)))

    def _append(self, batch: Sequence[np.ndarray]) -> None:
        stamp = self._stamp()
        if self._segment is None:
            self._begin(stamp)
        assert self._segment is not None
        for vectors in batch:
            self._segment.add(self.manifest.next_id + len(self._segment), pool(vectors, stamp.pool))

    def _begin(self, stamp: Stamp) -> None:
        self._made_by = stamp
        self._segment = SegmentWriter(
            self.folder, self.manifest.next_segment, stamp.dim, CODECS[stamp.codec]
        )

    def _stamp(self) -> Stamp:
        """The index's, or that of the one that is being made."""
        encoder = self._encoder()
        if self.manifest.stamp:  # perhaps published since the encoder was opened
            storage.require_same(self.folder, self.manifest.stamp, encoder)
            return self.manifest.stamp
        keeping = self._keeping
        return Stamp(encoder.name, encoder.fingerprint, encoder.dim, keeping.codec, keeping.pool)

    def _encoded(
        self, document: Incoming, replaces: Known | None
    ) -> tuple[NewDocument, Known | None]:
        assert self._segment is not None
        new = NewDocument(
            id=self._next_id, source=document.source, kind=document.kind, title=document.title,
            size=document.size, mtime_ns=document.mtime_ns, sha256=document.sha256,
            tokens=self._segment.tokens_of(self._next_id, len(document.chunks)),
            chunks=tuple(document.chunks), meta=document.meta,
        )  # fmt: skip
        return new, replaces

    def _finish(self, new: NewDocument, replaces: Known | None) -> None:
        """A document whose vectors are in the segment, to go with the next publication."""
        self._next_id += len(new.chunks)
        self._finished.append((new, replaces))
        self.tally.chunks += len(new.chunks)
        self.tally.tokens += new.tokens

    def _publish(self) -> None:
        self._note(1)
        if not (self._finished or self._gone):
            return
        self._publishing = True
        gone = [*self._gone, *(known for _, known in self._finished if known)]
        new = [document for document, _ in self._finished]
        manifest = _successor(self.manifest, new, gone)
        if self._segment:
            stamp = self._made_by
            assert stamp is not None
            held = [Held(d.id, len(d.chunks), d.source) for d in new]
            entry = headers.write(self.folder, self._segment.finish(), stamp, held)
            manifest = replace(
                manifest,
                segments=(*manifest.segments, entry),
                next_segment=manifest.next_segment + 1,
                stamp=stamp,
            )
            self._segment = None
        self._advance(manifest, new, [known.id for known in gone])
        self._count()
        self._published = time.monotonic()
        self._publishing = False

    def put(self, manifest: Manifest) -> None:
        """Publish the same passages in other segments."""
        self._advance(replace(manifest, generation=self.now + 1), (), ())

    def _advance(self, manifest: Manifest, new: Sequence[NewDocument], gone: Sequence[int]) -> None:
        """From one generation to the next; the segments of `manifest` are durable."""
        self.catalog.commit(manifest.generation, new, gone)
        storage.publish(self.folder, manifest)
        self.manifest = manifest
        self.catalog.purge(self.now)
        sweep(self.folder, manifest.segments)

    def _count(self) -> None:
        self.tally.removed += len(self._gone)
        replaced = sum(known is not None for _, known in self._finished)
        self.tally.updated += replaced
        self.tally.added += len(self._finished) - replaced
        self._finished.clear()
        self._gone.clear()

    def _note(self, enough: int) -> None:
        if len(self._touched) + len(self._unread) >= enough:
            self.catalog.note(self._touched, self._unread)
            self._touched.clear()
            self._unread.clear()


def _successor(old: Manifest, new: Sequence[NewDocument], gone: Sequence[Known]) -> Manifest:
    """The manifest after some documents came and others went, without the new segment."""
    segments = []
    for entry in old.segments:
        ranges = [(k.id, k.id + k.chunks) for k in gone if entry.first <= k.id <= entry.last]
        kept = entry.without(ranges) if ranges else entry
        if kept.live:
            segments.append(kept)
    return replace(
        old,
        generation=old.generation + 1,
        documents=old.documents + len(new) - len(gone),
        chunks=old.chunks + sum(len(d.chunks) for d in new) - sum(k.chunks for k in gone),
        tokens=old.tokens + sum(d.tokens for d in new) - sum(k.tokens for k in gone),
        next_id=old.next_id + sum(len(d.chunks) for d in new),
        segments=tuple(segments),
    )


@contextlib.contextmanager
def disk_told(place: Path | str) -> Iterator[None]:
    """Turns errors of the disk into LfmError that says what is left."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        told = f"cannot write to {place}: {why}; what was published stays, and the next run goes on"
        raise LfmError(told) from error
