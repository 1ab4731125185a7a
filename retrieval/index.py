"""What a user means by an index: bring it up to date, search it, delete from it, ask about it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2_mm.errors import BadInput, IndexDamaged
from retrieval import filters, matches, storage
from retrieval.check import check
from retrieval.codecs import CODECS
from retrieval.filters import Where
from retrieval.fusion import DEFAULT as EVEN
from retrieval.fusion import OF_ENCODER, Fusion
from retrieval.holding import Holding
from retrieval.ranking import Query, View, ranked
from retrieval.reading import Reader
from retrieval.requirements import check_effort, check_question, check_recall
from retrieval.rows import Row
from retrieval.storage import Manifest, Stamp
from retrieval.types import Damage, Hit, Info, Match, Mode, Progress, Report, Source

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.recall import Recall
    from retrieval.update import File
    from retrieval.writer import Keeping, Writer


def open(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Encoder | None = None,
    create: bool = False,
    codec: str | None = None,
    pool: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Index:
    """The index in a folder. The encoder is opened when it is needed: lexical search needs none.

    model: what made or is to make the index; None takes the one that made it, or the bundled one.
    codec, pool: how a new index keeps its vectors, and how many of a passage become one; None takes
    the default, or what the index has.
    Raises IndexMissing (and `create` is False), BadInput where something else lies in the folder or
    for other settings than the index has, IndexMismatch where it was made with another model.
    """
    folder = Path(path).expanduser()
    storage.require(folder, create=create)
    options = {"device": device, "dtype": dtype, "offline": offline}
    index = Index(folder, model, {"codec": codec, "pool": pool}, options)
    with contextlib.suppress(IndexDamaged):  # `repair` must be able to open it
        index.require_settings()
    return index


class Index(Holding):
    """Made by `open`. Threads may share it; searches see what was last published."""

    def __init__(
        self,
        folder: Path,
        model: str | os.PathLike[str] | Encoder | None,
        keeping: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        super().__init__(model, keeping, options)
        self._folder = folder
        self._reader = Reader(folder, self._accept)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    place = folder

    def close(self) -> None:
        """Let go of the files. The index can be used again; it then opens them anew."""
        self._reader.close()

    # --- changing --------------------------------------------------------------------------------

    def attach(
        self,
        segments: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Take over the documents of segment folders, as `retrieval.encode_segment` makes them.

        Each folder in one publication; its vectors are copied, nothing is encoded. A source that
        the index has in another state is replaced, one that it has as it is stays: attaching twice
        changes nothing, and what is attached last counts. Any other index of the same model and
        settings can be attached, too. Raises IndexMissing, IndexMismatch for other models or
        settings, IndexDamaged, all before anything of the folder in question is taken over.
        """
        from retrieval.batches import attach, stamp_of

        named = [segments] if isinstance(segments, (str, os.PathLike)) else list(segments)
        folders = [Path(folder).expanduser() for folder in named]
        for folder in folders:
            self._require(stamp_of(folder, self.folder), folder)
        with self._run({}, progress) as (run, reported):
            for folder in folders:
                attach(run, folder)
        return reported()

    def compact(self, progress: Callable[[int, int], None] | None = None) -> Info:
        """Bring the index into few segments without what was deleted, and give its space back.

        Searches go on meanwhile. progress: passages copied, and of how many.
        """
        from retrieval.compact import compact
        from retrieval.writer import writing

        with writing(self.folder, self.encoder) as writer:
            compact(writer, progress or (lambda done, total: None))
        return self.info()

    def repair(
        self, progress: Callable[[Progress], None] | None = None
    ) -> tuple[list[Damage], Report]:
        """Keep what is whole, encode the rest again; what was damaged, and what was done.

        Texts that are whole are kept, also where their vectors are not. A document whose text is
        damaged is read again from its file; where there is none it is gone, and the report says so.
        """
        from retrieval.repair import repair, restore
        from retrieval.writer import disk_told

        self.close()
        with disk_told(self.folder), storage.writing(self.folder):
            damaged = self.check()
            work = repair(self.folder, damaged) if damaged else None
        with self._run({}, progress) as (run, reported):
            if work:
                restore(run, work)
        return damaged, reported()

    def _found(self, writer: Writer, pattern: str) -> Iterable[str]:
        from retrieval.files import source_of

        if found := writer.catalog.sources(writer.now, pattern):
            return [one.source for one in found]
        with contextlib.suppress(OSError, ValueError):  # a path relative to where we are
            exact = source_of(pattern)
            return [exact] if writer.known(exact) else []
        return []

    def _stamp(self) -> Stamp | None:
        return storage.load(self.folder).stamp

    def _writing(self, keeping: Keeping) -> AbstractContextManager[Writer]:
        from retrieval.writer import writing

        return writing(self.folder, self.encoder, keeping)

    def _tidy(self, writer: Writer) -> None:
        from retrieval.compact import tidy

        tidy(writer)

    # --- searching -------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        k: int = 10,
        mode: Mode = "hybrid",
        where: Where | None = None,
        *,
        fusion: Fusion | None = None,
    ) -> list[Hit]:
        """The k best passages, best first; equal scores in the order of their ids.

        mode: "colbert", exact MaxSim; "lexical", BM25; "hybrid", both joined as `fusion` says.
        where: conditions that all hold, checked before anything is scored: `source` (a glob on the
        path or the file's name), `type` (kind or suffix), `title` (a glob), `page`, `date` (when
        the file was changed: a year, month, day or minute) or a metadata key; the last three also
        with a sign: {"date>=": "2024-06", "page<": "10"}. Pairs may name a key twice.
        Raises BadInput for an empty query, k below 1, an unknown mode or key.
        """
        with self._asked(query, k, mode, where, fusion) as (view, asked):
            ids, scores = self._ranked(view, asked)
            rows = self._reader.catalog().rows(ids) if len(ids) else []
            if len(rows) != len(ids):
                raise self._reader.damaged("passages that have vectors lack their text")
            return [
                hit_of(rank, float(score), row, self._matched(view, asked, row))
                for rank, (score, row) in enumerate(zip(scores, rows, strict=True), start=1)
            ]

    def rank(
        self,
        query: str,
        k: int = 100,
        mode: Mode = "hybrid",
        where: Where | None = None,
        *,
        fusion: Fusion | None = None,
    ) -> list[tuple[str, float]]:
        """The k best documents: source, and score of its best passage. Else as `search`."""
        with self._asked(query, k, mode, where, fusion) as (view, asked):
            wanted = k
            while True:
                ids, scores = self._ranked(view, replace(asked, k=wanted))
                sources = self._reader.catalog().sources_of(ids) if len(ids) else []
                found: dict[str, float] = {}
                for source, score in zip(sources, scores, strict=True):
                    found.setdefault(source, float(score))
                if len(found) >= k or len(ids) < wanted:
                    return list(found.items())[:k]
                wanted *= 2

    @contextlib.contextmanager
    def _asked(
        self, query: str, k: int, mode: Mode, where: Where | None, fusion: Fusion | None
    ) -> Iterator[tuple[View, Query]]:
        """A checked query, and the state to search, which is held only after it was encoded."""
        check_question(query, k, mode)
        empty = self._reader.refreshed().manifest.chunks == 0
        vectors = None
        if mode != "lexical" and not empty:
            vectors = self.encoder().encode_queries([query])[0]
            fusion = fusion or OF_ENCODER.get(self.encoder().name)
        with self._reader.snapshot() as view:
            yield view, Query(query, k, mode, filters.pairs(where), vectors, fusion or EVEN)

    def _ranked(self, view: View, asked: Query) -> tuple[np.ndarray, np.ndarray]:
        if view.manifest.chunks == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return ranked(view, self._reader.catalog(), asked)

    def _matched(self, view: View, asked: Query, row: Row) -> tuple[Match, ...]:
        if asked.vectors is None:
            return matches.by_word(asked.terms, row.text)
        stamp, encoder = view.manifest.stamp, self.encoder()
        if stamp and stamp.pool > 1:  # what is stored no longer tells the tokens apart
            passage = f"{row.context}\n{row.text}" if row.context else row.text
            (stored,) = encoder.encode_documents([passage])
        else:
            stored = view.vectors.vectors(row.id)
        return matches.by_meaning(encoder, asked.text, asked.vectors, row.context, row.text, stored)

    # --- telling ---------------------------------------------------------------------------------

    def info(self) -> Info:
        """What the index holds."""
        m = self._reader.refreshed().manifest
        size = storage.bytes_of(self.folder)
        if m.stamp is None:
            return Info(m.documents, m.chunks, m.tokens, size, None, storage.VERSION)
        width = CODECS[m.stamp.codec].row_bytes(m.stamp.dim)
        return Info(
            m.documents, m.chunks, m.tokens, size, m.stamp.name, storage.VERSION,
            codec=m.stamp.codec, bytes_per_token=width, pool=m.stamp.pool,
        )  # fmt: skip

    def sources(self, pattern: str | None = None) -> list[Source]:
        """The documents with their metadata, by source; `pattern` as in `delete`."""
        with self._reader.snapshot() as view:
            now = view.manifest.generation
            return self._reader.catalog().sources(now, pattern) if now else []

    def text(self, document: int) -> str:
        """A document's text as far as it was indexed, at its own offsets: gaps are line breaks."""
        with self._reader.snapshot() as view:
            chunks = self._reader.catalog().chunks_of(document) if view.manifest.generation else []
        if not chunks:
            raise BadInput(
                f"no document {document} in {self.folder}; `search` and `sources` tell which"
            )
        found, place = [], 0
        for start, text in chunks:
            found += ["\n" * (start - place), text]
            place = start + len(text)
        return "".join(found)

    def recall(
        self,
        k: int = 10,
        queries: Sequence[str] | None = None,
        *,
        target: float | None = None,
    ) -> Recall:
        """How much of the exact ranking searches by meaning find here, and how fast they are.

        queries: None takes phrases of some passages. target: look for the effort that reaches this
        recall; `set_effort` keeps it.
        """
        from retrieval.recall import QUERIES, measure, phrases, reach

        check_recall(k, target)
        with self._reader.snapshot() as view:
            if queries is None and view.manifest.chunks:
                catalog = self._reader.catalog()
                ids = catalog.select((), view.manifest.generation)
                some = np.random.default_rng(0).permutation(ids)[:QUERIES]
                queries = list(phrases([row.text for row in catalog.rows(some)]))
        asked = [text for text in queries or () if text.strip()]
        vectors = self.encoder().encode_queries(asked) if asked else []
        view = self._reader.refreshed()  # not held: others search meanwhile
        return measure(view, vectors, k) if target is None else reach(view, vectors, k, target)

    def set_effort(self, effort: int | None) -> None:
        """Score so many passages exactly in each search by meaning; None: as many as is usual."""
        check_effort(effort)
        from retrieval.writer import writing

        with writing(self.folder, self.encoder) as writer:
            writer.put(replace(writer.manifest, effort=effort))

    def check(self) -> list[Damage]:
        """What in the index is not as it was written; empty when it is sound. Reads every byte."""
        return check(self.folder)

    # --- for many workers ------------------------------------------------------------------------

    def changed(self, files: Sequence[File]) -> list[File]:
        """Those that an update would read: new, or not in the state that is known."""
        with self._reader.snapshot() as view:
            now = view.manifest.generation
            if not now:
                return list(files)
            catalog = self._reader.catalog()
            known = {file.source: catalog.find(file.source, now) for file in files}
            return [file for file in files if not file.same(known[file.source])
                    and catalog.unread(file.source, file.size, file.mtime_ns) is None]  # fmt: skip

    def _accept(self, manifest: Manifest) -> None:
        if manifest.stamp and self._encoder:
            storage.require_same(self.folder, manifest.stamp, self._encoder)


def hit_of(rank: int, score: float, row: Row, matched: tuple[Match, ...]) -> Hit:
    """A passage as a search answers it."""
    return Hit(
        rank=rank, score=score, id=row.id, document=row.document, source=row.source,
        start=row.start, end=row.end, text=row.text, page=row.page, heading=row.heading,
        matches=matched,
    )  # fmt: skip
