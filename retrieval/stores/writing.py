"""Encode documents and put them into a store, some hundred passages at a time. Knows no files.

Offers what `retrieval/update.py` asks of a writer. A write goes so: ids are reserved in the head,
whole documents are put, those they replace are taken away, and the head tells that it is done. What
a killed writer left unfinished is removed by the next one, which encodes it again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lfm2_mm.errors import IndexMismatch
from retrieval.codecs import CODECS
from retrieval.pooling import pool
from retrieval.rows import Known, NewChunk
from retrieval.storage import Stamp, require_same
from retrieval.stores.seam import CandidateStore, Head, Heading, Passage
from retrieval.stores.where import Compare, In, number_of
from retrieval.writer import ENCODE_CHUNKS, Incoming, Keeping, Tally, disk_told, passage

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

PUT_CHUNKS = 1024  # passages written at once
PUT_SECONDS = 15.0  # work that a kill may lose
AHEAD = 500  # sources looked up at once
TOUCHES = 256  # documents whose time or metadata changed, rewritten at once


@contextlib.contextmanager
def writing(
    store: CandidateStore, encoder: Callable[[], Encoder], keeping: Keeping
) -> Iterator[StoreWriter]:
    """Be the store's only writer; on Ctrl-C what was finished by then is put. Raises IndexBusy,
    LfmError where the disk does not take it."""
    with disk_told(store.address), store.writing():
        writer = StoreWriter(store, encoder, keeping)
        writer.recover()
        try:
            yield writer
            writer.commit()
        except KeyboardInterrupt:
            writer.waiting.clear()
            writer.commit()
            raise


class StoreWriter:
    """Made by `writing`, which holds the lock where there is one."""

    now = 0  # generations are the engine's own

    def __init__(
        self, store: CandidateStore, encoder: Callable[[], Encoder], keeping: Keeping
    ) -> None:
        self.store = store
        self.tally = Tally()
        self.progress: Callable[[int], None] = lambda chunks: None
        self.waiting: list[tuple[Incoming, Known | None]] = []
        self._encoder, self._keeping = encoder, keeping
        self._head = store.head()
        self._finished: list[list[Passage]] = []
        self._gone: list[int] = []
        self._touched: dict[int, tuple[int | None, int | None, Mapping[str, str]]] = {}
        self._ahead: list[str] = []
        self._seen: dict[str, Heading | None] = {}
        self._started = time.monotonic()

    @property
    def catalog(self) -> StoreWriter:
        """What `update` asks a catalog, this answers too."""
        return self

    def recover(self) -> None:
        """Remove what a killed writer left unfinished."""
        if self._head and self._head.done < self._head.next_id:
            self.store.delete(Compare("id", ">=", self._head.done))
            self._put(replace(self._head, done=self._head.next_id))

    # --- what is there -----------------------------------------------------------------------

    def expect(self, sources: Iterable[str]) -> None:
        """Sources that will be asked for in this order: they are looked up together."""
        self._ahead = list(reversed(list(sources)))

    def known(self, source: str) -> Known | None:
        h = self.heading(source)
        return Known(h.id, h.size, h.mtime_ns, h.sha256, h.chunks, h.tokens) if h else None

    def heading(self, source: str) -> Heading | None:
        """What is there of a source."""
        if self._head is None:
            return None
        if source not in self._seen:
            self._look(source)
        return self._seen[source]

    def _look(self, source: str) -> None:
        batch = {source: None}
        while self._ahead and len(batch) < AHEAD:
            batch[self._ahead.pop()] = None
        self._seen = dict.fromkeys(batch)
        for heading in self.store.headings(In("source", tuple(batch))):
            self._seen[heading.source] = heading

    def unread(self, source: str, size: int, mtime_ns: int) -> str | None:
        return None

    def meta(self, document: int) -> Mapping[str, str]:
        for heading in self._seen.values():
            if heading and heading.id == document:
                return heading.meta
        return {}

    def files(self, now: int) -> list[str]:
        found = self.store.headings() if self._head else ()
        return [heading.source for heading in found if heading.size is not None]

    # --- what comes and goes -----------------------------------------------------------------

    def add(self, document: Incoming, replaces: Known | None = None) -> None:
        """Encode a document, now or with the next ones; each source at most once a run."""
        self.waiting.append((document, replaces))
        if sum(len(one.chunks) for one, _ in self.waiting) >= ENCODE_CHUNKS:
            self._encode()
        full = sum(map(len, self._finished)) >= PUT_CHUNKS
        if full or time.monotonic() - self._started > PUT_SECONDS:
            self.commit()

    def take(self, stamp: Stamp, passages: Sequence[Passage], replaces: Known | None) -> None:
        """Take over one document whose rows come from elsewhere, under new ids."""
        self._begin(stamp)
        heading = passages[0].heading
        parts = [(one.chunk, one.rows) for one in passages]
        self._finish(replace(heading, id=self._next_id()), parts, replaces)
        if sum(map(len, self._finished)) >= PUT_CHUNKS:
            self.commit()

    def remove(self, known: Known) -> None:
        self._gone.append(known.id)
        self.tally.removed += 1

    def touch(
        self, known: Known, size: int | None, mtime_ns: int | None, meta: Mapping[str, str]
    ) -> None:
        """Note time and metadata of a document that stays as it is."""
        self._learn(meta)
        self._touched[known.id] = (size, mtime_ns, meta)
        if len(self._touched) >= TOUCHES:
            self._touch()

    def _touch(self) -> None:
        changed = []
        for old in self.store.scan(In("document", tuple(self._touched))):
            size, mtime_ns, meta = self._touched[old.heading.id]
            both = {**old.heading.meta, **meta}
            heading = replace(old.heading, size=size, mtime_ns=mtime_ns, meta=both)
            changed.append(Passage.made(old.id, heading, old.chunk, old.rows))
            if heading.source in self._seen:
                self._seen[heading.source] = heading
        self.store.upsert(changed, replaces=True)
        self._touched.clear()

    def skip(self, source: str, size: int, mtime_ns: int, why: str) -> None:
        """Not remembered: the file is tried again in the next run."""

    def commit(self) -> None:
        """Encode what waits, and put it."""
        self._encode()
        self._started = time.monotonic()
        if self._touched:
            self._touch()
        if not (self._finished or self._gone) or self._head is None:
            return
        passages = [one for document in self._finished for one in document]
        if passages:
            self._put(replace(self._head, next_id=passages[-1].id + 1))
            self.store.upsert(passages, self._gone)
        else:
            self.store.delete(In("document", tuple(self._gone)))
        self._put(replace(self._head, done=self._head.next_id))
        self._remember()
        self._finished.clear()
        self._gone.clear()

    def _remember(self) -> None:
        """Bring what was looked up ahead to the state after a write."""
        for source, heading in self._seen.items():
            if heading and heading.id in self._gone:
                self._seen[source] = None
        for document in self._finished:
            heading = document[0].heading
            if heading.source in self._seen:
                self._seen[heading.source] = heading

    def _encode(self) -> None:
        queue = [chunk for document, _ in self.waiting for chunk in document.chunks]
        if not queue:
            return
        stamp = self._begin(self._stamp())
        codec, rows = CODECS[stamp.codec], []
        for first in range(0, len(queue), ENCODE_CHUNKS):
            texts = [passage(chunk) for chunk in queue[first : first + ENCODE_CHUNKS]]
            for vectors in self._encoder().encode_documents(texts, self.progress):
                pooled = pool(vectors, stamp.pool)
                encoded = np.frombuffer(codec.encode(pooled), np.uint8)
                rows.append(encoded.reshape(len(pooled), -1))
        parts = iter(rows)
        for document, replaces in self.waiting:
            d = document
            held = [(chunk, next(parts)) for chunk in d.chunks]
            heading = Heading(
                self._next_id(), d.source, d.kind, d.title, d.size, d.mtime_ns, d.sha256,
                len(d.chunks), sum(len(one) for _, one in held), dict(d.meta),
            )  # fmt: skip
            self._finish(heading, held, replaces)
        self.waiting.clear()

    def _finish(
        self, heading: Heading, parts: Sequence[tuple[NewChunk, np.ndarray]],
        replaces: Known | None,
    ) -> None:  # fmt: skip
        self._learn(heading.meta)
        self._finished.append(
            [Passage.made(heading.id + n, heading, *part) for n, part in enumerate(parts)]
        )
        if replaces:
            self._gone.append(replaces.id)
        self.tally.updated += replaces is not None
        self.tally.added += replaces is None
        self.tally.chunks += heading.chunks
        self.tally.tokens += heading.tokens

    def _next_id(self) -> int:
        assert self._head is not None
        if self._finished:
            return self._finished[-1][-1].id + 1
        return self._head.next_id

    def _stamp(self) -> Stamp:
        encoder = self._encoder()
        if self._head:
            return self._head.stamp
        keeping = self._keeping
        return Stamp(encoder.name, encoder.fingerprint, encoder.dim, keeping.codec, keeping.pool)

    def _begin(self, stamp: Stamp) -> Stamp:
        """The store's stamp; a new store takes this one."""
        if self._head is None:
            self._put(Head(stamp))
        assert self._head is not None
        self.require_alike(stamp)
        return self._head.stamp

    def require_alike(self, stamp: Stamp) -> None:
        """Raise IndexMismatch for rows of another model, or that are kept otherwise than here."""
        ours = self._head.stamp if self._head else stamp
        require_same(self.store.address, ours, stamp)
        for name in ("dim", "codec", "pool"):
            here, there = getattr(ours, name), getattr(stamp, name)
            if here != there:
                raise IndexMismatch(
                    f"{self.store.address} was made with {name} {here}, not {there}: encode the "
                    "files again as it has them, or take a new store"
                )

    def _learn(self, meta: Mapping[str, str]) -> None:
        """The head knows every metadata key there is before a document with it is there."""
        head = self._head
        assert head is not None
        keys = dict(head.keys)
        for key, value in meta.items():
            keys[key] = keys.get(key, True) and number_of(value) is not None
        if keys != head.keys:
            self._put(replace(head, keys=keys))

    def _put(self, head: Head) -> None:
        self.store.put_head(head)
        self._head = head
