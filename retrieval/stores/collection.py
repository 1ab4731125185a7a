"""What a user means by a collection in a store: as an `Index`, but an engine holds it.

The engine proposes, exact MaxSim over our own rows decides the order, and conditions are part of
the engine's own search. Search is by meaning: words are looked up in an index folder only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2_mm.errors import BadInput, IndexDamaged
from retrieval import filters, matches, storage
from retrieval.codecs import CODECS
from retrieval.filters import Where as Conditions
from retrieval.holding import Holding
from retrieval.index import hit_of
from retrieval.requirements import check_by_meaning, check_effort, check_question, check_recall
from retrieval.segments import best
from retrieval.storage import Stamp
from retrieval.stores import open_store
from retrieval.stores import where as tree
from retrieval.stores.seam import CandidateStore, Head, Passage
from retrieval.stores.where import In, Where
from retrieval.stores.writing import StoreWriter, writing
from retrieval.types import Damage, Hit, Info, Match, Mode, Progress, Report, Source
from retrieval.writer import Keeping

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.recall import Recall
    from retrieval.update import File

FEW = 512  # passages that are all scored: fetching them costs what choosing among them would
EFFORT = 200  # passages that are scored exactly, or
EFFORT_K = 10  # this many times as many as are asked for
EFFORT_EXACT = 2  # the same where the engine's own order is right but for rounding
BATCH = 1024  # passages of a whole pass that are in memory at once


def open_collection(
    store: str | CandidateStore,
    *,
    model: str | os.PathLike[str] | Encoder | None = None,
    create: bool = False,
    codec: str | None = None,
    pool: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Collection:
    """The collection in a store such as "lancedb:./my.lance"; the rest as in `retrieval.open`."""
    opened = open_store(store, create=create) if isinstance(store, str) else store
    options = {"device": device, "dtype": dtype, "offline": offline}
    collection = Collection(opened, model, {"codec": codec, "pool": pool}, options)
    try:
        collection.require_settings()
    except BaseException:
        opened.close()
        raise
    return collection


class Collection(Holding):
    """Made by `open_collection`. Searches see what is in the engine at that moment."""

    def __init__(
        self,
        store: CandidateStore,
        model: str | os.PathLike[str] | Encoder | None,
        keeping: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        super().__init__(model, keeping, options)
        self.store = store

    @property
    def place(self) -> str:
        """The store's address."""
        return self.store.address

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine."""
        return self.store.folder

    def close(self) -> None:
        """Let go of the engine."""
        self.store.close()

    # --- changing --------------------------------------------------------------------------------

    def attach(
        self,
        segments: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Take over the documents of segment folders or whole indexes, as `Index.attach` does."""
        from retrieval.stores.copying import take_all
        from retrieval.stores.own import open_store as open_own

        named = [segments] if isinstance(segments, (str, os.PathLike)) else list(segments)
        with self._run({}, progress) as (run, reported):
            for folder in named:
                with contextlib.closing(open_own(os.fspath(folder), create=False)) as theirs:
                    take_all(theirs, run, run.writer)
        return reported()

    def compact(self, progress: Callable[[int, int], None] | None = None) -> Info:
        """Have the engine merge what it wrote, index all of it, and give space back."""
        with self.store.writing():
            self.store.optimize()
        return self.info()

    def set_effort(self, effort: int | None) -> None:
        """Score so many passages exactly in each search; None: as many as is usual."""
        check_effort(effort)
        with self.store.writing():
            self.store.put_head(replace(self._head(), effort=effort))

    def _stamp(self) -> Stamp | None:
        head = self.store.head()
        return head.stamp if head else None

    def _writing(self, keeping: Keeping) -> AbstractContextManager[StoreWriter]:
        return writing(self.store, self.encoder, keeping)

    def _tidy(self, writer: StoreWriter) -> None:
        if self.store.head():
            self.store.tidy()

    def _found(self, writer: StoreWriter, pattern: str) -> Iterable[str]:
        from retrieval.files import as_typed, source_of

        meant = as_typed(pattern)
        exact: Where = tree.Or((In("source", meant), In("name", meant)))
        with contextlib.suppress(OSError, ValueError):
            exact = tree.Or((exact, In("source", (source_of(pattern),))))
        found = self._headings(exact) or self._headings(tree.source(pattern))
        return [heading.source for heading in found]

    # --- searching -------------------------------------------------------------------------------

    def search(
        self, query: str, k: int = 10, mode: Mode = "colbert", where: Conditions | None = None
    ) -> list[Hit]:
        """The k best passages by exact MaxSim, best first; `where` as in `Index.search`."""
        self._check(query, k, mode)
        head = self.store.head()
        if head is None:
            return []
        vectors = self.encoder().encode_queries([query])[0]
        found = self.nearest(head, vectors, k, self._where(head, where))
        return [
            hit_of(rank, score, one.row, self._matched(head, query, vectors, one))
            for rank, (one, score) in enumerate(found, start=1)
        ]

    def rank(
        self, query: str, k: int = 100, mode: Mode = "colbert", where: Conditions | None = None,
        **_: object,
    ) -> list[tuple[str, float]]:  # fmt: skip
        """The k best documents: source, and score of its best passage. Else as `search`."""
        self._check(query, k, mode)
        head = self.store.head()
        if head is None:
            return []
        vectors, wanted = self.encoder().encode_queries([query])[0], k
        condition = self._where(head, where)
        while True:
            passages = self.nearest(head, vectors, wanted, condition)
            found: dict[str, float] = {}
            for one, score in passages:
                found.setdefault(one.heading.source, score)
            if len(found) >= k or len(passages) < wanted:
                return list(found.items())[:k]
            wanted *= 2

    def _check(self, query: str, k: int, mode: str) -> None:
        check_question(query, k, mode)
        check_by_meaning(self.store.address, mode)

    def _where(self, head: Head, where: Conditions | None) -> Where | None:
        condition = tree.parsed(filters.pairs(where), head.keys)
        return self._resolved(condition) if condition else None

    def _resolved(self, condition: Where) -> Where:
        native = (tree.Glob,) if self.store.caps.patterns else ()
        return tree.resolved(condition, native, self.store.headings)

    def nearest(
        self, head: Head, query: np.ndarray, k: int, where: Where | None = None
    ) -> list[tuple[Passage, float]]:
        """The k best passages and their exact scores; query: (Q, dim) float32."""
        usual = EFFORT_EXACT * k + 10 if self.store.caps.exact else max(EFFORT, EFFORT_K * k)
        effort = max(k, head.effort or usual)
        if self.store.count(where) <= max(effort, FEW):
            passages = list(self.store.scan(where))
        else:
            passages = self.store.fetch(self.store.candidates(query, effort, where))
        scores = self._scores(head, query, passages)
        ids = np.array([one.id for one in passages], dtype=np.int64)
        places = {one.id: one for one in passages}
        chosen = zip(*best(ids, scores, k), strict=True)
        return [(places[int(one)], float(score)) for one, score in chosen]

    def _scores(self, head: Head, query: np.ndarray, passages: Sequence[Passage]) -> np.ndarray:
        """Exact MaxSim (N,), over the rows as our index has them."""
        codec = CODECS[head.stamp.codec]
        for one in passages:
            if not one.sound:
                raise IndexDamaged(
                    f"{self.store.address}: passage {one.id} of {one.heading.source!r} is not as "
                    "it was written; `lfm2-mm check` tells what else is damaged"
                )
        empty = np.empty((0, codec.row_bytes(head.stamp.dim)), np.uint8)
        rows = np.concatenate([empty, *(one.rows for one in passages)])
        bounds = np.cumsum([0, *(len(one.rows) for one in passages)])
        return codec.scores(query, rows, bounds[:-1], bounds[1:])

    def _matched(
        self, head: Head, query: str, vectors: np.ndarray, one: Passage
    ) -> tuple[Match, ...]:
        encoder, row = self.encoder(), one.row
        stored = one.vectors(head.stamp)
        if head.stamp.pool > 1:  # what is stored no longer tells the tokens apart
            passage = f"{row.context}\n{row.text}" if row.context else row.text
            (stored,) = encoder.encode_documents([passage])
        return matches.by_meaning(encoder, query, vectors, row.context, row.text, stored)

    # --- telling ---------------------------------------------------------------------------------

    def info(self) -> Info:
        """What the store holds. Bytes are 0 where the engine does not tell."""
        head = self.store.head()
        if head is None:
            return Info(0, 0, 0, 0, None, storage.VERSION)
        documents = tokens = 0
        for heading in self.store.headings():
            documents, tokens = documents + 1, tokens + heading.tokens
        stamp = head.stamp
        return Info(
            documents, self.store.count(), tokens, self.store.bytes(), stamp.name, storage.VERSION,
            codec=stamp.codec, bytes_per_token=CODECS[stamp.codec].row_bytes(stamp.dim),
            pool=stamp.pool,
        )  # fmt: skip

    def sources(self, pattern: str | None = None) -> list[Source]:
        """The documents with their metadata, by source; `pattern` as in `delete`."""
        found = self._headings(tree.source(pattern) if pattern else None)
        return [Source(h.id, h.source, h.kind, h.title, h.chunks, h.tokens, h.meta) for h in found]

    def _headings(self, where: Where | None) -> list[Any]:
        if self.store.head() is None:
            return []
        found = self.store.headings(self._resolved(where) if where else None)
        return sorted(found, key=lambda heading: heading.source)

    def check(self) -> list[Damage]:
        """Passages that are not as they were written, documents that lack some. Reads all."""
        damaged: list[Damage] = []
        if (head := self.store.head()) is None:
            return damaged
        there: dict[int, list[int]] = {}  # document -> passages promised, passages found
        for one in self.store.scan():
            told = there.setdefault(one.heading.id, [one.heading.chunks, 0])
            told[1] += 1
            if not one.sound or one.id >= head.next_id:
                damaged.append(Damage(one.heading.source, f"passage {one.id} is not as written"))
        for document, (promised, found) in there.items():
            if promised != found:
                what = f"has {found} passages of {promised}"
                damaged.append(Damage(f"document {document}", what))
        return damaged

    def recall(
        self, k: int = 10, queries: Sequence[str] | None = None, *, target: float | None = None
    ) -> Recall:
        """As `Index.recall`, against exact MaxSim with every passage of the store."""
        from retrieval.stores.measuring import measure, sample

        check_recall(k, target)
        head = self._head()
        if queries is None:
            queries = sample(self.store)
        asked = [text for text in queries if text.strip()]
        vectors = self.encoder().encode_queries(asked) if asked else []

        def search(effort: int | None) -> Callable[[np.ndarray, int], np.ndarray]:
            with_effort = replace(head, effort=effort)

            def scores(query: np.ndarray, k: int) -> np.ndarray:
                found = self.nearest(with_effort, query, k, None)
                return np.array([score for _, score in found], dtype=np.float32)

            return scores

        def exact(passages: Sequence[Passage], query: np.ndarray) -> np.ndarray:
            return self._scores(head, query, passages)

        return measure(self.store, search, exact, vectors, k, head.effort, target)

    # --- for many workers ------------------------------------------------------------------------

    def changed(self, files: Sequence[File]) -> list[File]:
        """Those that an update would read: new, or not in the state that is known."""
        if self.store.head() is None:
            return list(files)
        lookup = StoreWriter(self.store, self.encoder, Keeping())
        lookup.expect(file.source for file in files)
        return [file for file in files if not file.same(lookup.known(file.source))]

    def _head(self) -> Head:
        head = self.store.head()
        if head is None:
            raise BadInput(f"{self.store.address} is empty: index something into it first")
        return head
