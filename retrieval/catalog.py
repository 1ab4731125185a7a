"""Documents, passages, words and metadata in SQLite. Knows no vectors and no manifest.

Every document row tells in which generation it came and went. A reader of generation G sees what
came by G and has not gone by G, so rows that a killed writer left behind are never seen. Documents
and passages carry a checksum that is compared whenever one is read.
"""

# ruff: noqa: S608  (queries are put together from this file's own constants; all values are bound)

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_mm.errors import IndexBusy, IndexDamaged, LfmError
from retrieval import filters, lexical, seal
from retrieval.database import Database, disk_is_full
from retrieval.files import as_typed
from retrieval.rows import (
    Known,
    NewChunk,
    NewDocument,
    Row,
    Touched,
    Unread,
    sum_of_chunk,
    sum_of_document,
)
from retrieval.storage import CATALOG
from retrieval.types import Damage, Source

Conditions = Sequence[tuple[str, str]]

HIDDEN = (  # two queries, for an index each
    "SELECT id FROM documents WHERE came > :now "
    "UNION ALL SELECT id FROM documents WHERE gone <= :now"
)
SEEN = "came <= :now AND (gone IS NULL OR gone > :now)"
CHUNK = "c.id, c.document, c.start, c.end, c.text, c.context, c.heading, c.page"
DOCUMENT = "id, source, kind, title, sha256, chunks, tokens, came"


class Catalog(Database):
    """A reader begins a snapshot before it reads, a writer commits by itself."""

    # --- reading ---------------------------------------------------------------------------------

    def purged(self) -> int:
        """Readers of an earlier generation than this must look at the manifest again."""
        return int(self._one("SELECT value FROM state WHERE key = 'purged'"))

    def last(self) -> int:
        """The generation that was committed last; it may not be published yet."""
        return int(self._one("SELECT value FROM state WHERE key = 'last'"))

    def lexical(
        self,
        terms: Sequence[str],
        k: int,
        now: int,
        where: Conditions = (),
        among: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and positive BM25 scores of the k best passages with any of the terms, best first."""
        if not terms:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        # "+rowid" keeps SQLite from looking up the terms once for each allowed passage.
        hidden = f"+w.rowid NOT IN (SELECT id FROM chunks WHERE document IN ({HIDDEN}))"
        conditions, values = (
            [hidden],
            {
                "now": now,
                "match": lexical.expression(terms),
                "k": k,
            },
        )
        if where:
            selection, chosen = self._selection(where, now)
            conditions.append(f"+w.rowid IN ({selection})")
            values |= chosen
        if among is not None:
            conditions.append(f"+w.rowid IN ({','.join(str(int(i)) for i in among)})")
        found = self._all(
            "SELECT w.rowid, -bm25(words) AS score "
            f"FROM words w WHERE words MATCH :match AND {' AND '.join(conditions)} "
            "ORDER BY score DESC, w.rowid LIMIT :k",
            values,
        )
        ids = np.array([row[0] for row in found], dtype=np.int64)
        return ids, np.array([row[1] for row in found], dtype=np.float32)

    def select(self, where: Conditions, now: int) -> np.ndarray:
        """Ids of the passages that `where` allows, ascending."""
        selection, values = self._selection(where, now)
        found = self._all(f"SELECT id FROM ({selection}) ORDER BY id", values)
        return np.array([row[0] for row in found], dtype=np.int64)

    def chosen(self, condition: str, values: Mapping[str, Any], now: int) -> np.ndarray:
        """Ids of the passages for which SQL over `documents d` and `chunks c` holds, ascending."""
        query = "SELECT c.id FROM chunks c JOIN documents d ON d.id = c.document "
        query += f"WHERE {SEEN} AND ({condition}) ORDER BY c.id"
        found = self._all(query, {**values, "now": now})
        return np.array([row[0] for row in found], dtype=np.int64)

    def _selection(self, where: Conditions, now: int) -> tuple[str, dict[str, Any]]:
        """A query for the passages that fit all of `where`."""
        conditions, values = filters.conditions(where, self.keys(now))
        joined = "SELECT c.id AS id FROM chunks c JOIN documents d ON d.id = c.document WHERE "
        return joined + " AND ".join([SEEN, *conditions]), {**values, "now": now}

    def keys(self, now: int) -> list[str]:
        """The metadata keys that any document has."""
        query = (
            f"SELECT DISTINCT m.key FROM meta m JOIN documents d ON d.id = m.document WHERE {SEEN}"
        )
        return [key for (key,) in self._all(f"{query} ORDER BY 1", {"now": now})]

    def rows(self, ids: Iterable[int]) -> list[Row]:
        """Passages by id, in the order asked; one that is not there is left out.

        Raises IndexDamaged for one that is not as it was written.
        """
        query = (
            f"SELECT {CHUNK}, c.sum, d.source FROM chunks c JOIN documents d ON d.id = c.document "
            "WHERE c.id = ?"
        )
        found, compared = [], set()
        for chunk in ids:
            for *values, total, source in self._all(query, (int(chunk),)):
                document = values[1]
                sound = sum_of_chunk(*values) == total
                if not sound or (document not in compared and not self._fits(document)):
                    raise self._damaged(f"passage {chunk} of {source!r} is not as it was written")
                compared.add(document)
                found.append(Row(values[0], document, source, *values[2:]))
        return found

    def _fits(self, document: int) -> bool:
        """Is a document's row as it was written?"""
        query = f"SELECT {DOCUMENT}, sum FROM documents WHERE id = ?"
        for *values, total in self._all(query, (document,)):
            return bool(sum_of_document(values, self.meta(document)) == total)
        return False

    def sources_of(self, ids: Iterable[int]) -> list[str]:
        """The source of each passage."""
        query = "SELECT d.source FROM chunks c JOIN documents d ON d.id = c.document WHERE c.id = ?"
        return [self._one(query, (int(chunk),)) for chunk in ids]

    def find(self, source: str, now: int) -> Known | None:
        """The document of exactly this source."""
        columns = "id, size, mtime_ns, sha256, chunks, tokens"
        query = f"SELECT {columns} FROM documents WHERE source = :source AND {SEEN}"
        for row in self._all(query, {"source": source, "now": now}):
            return Known(*row)
        return None

    def meta(self, document: int) -> dict[str, str]:
        return dict(
            self._all("SELECT key, value FROM meta WHERE document = ? ORDER BY key", (document,))
        )

    def sources(self, now: int, pattern: str | None = None) -> list[Source]:
        """The documents, by source. pattern: a source or its last part; where that is none of them,
        a glob on either."""
        same = "source IN (:p, :q) OR name IN (:p, :q)"
        alike = "source GLOB :p OR name GLOB :p OR source GLOB :q OR name GLOB :q"
        shown, called = as_typed(pattern or "")
        for condition in (same, alike) if pattern else ("TRUE",):
            query = (
                "SELECT id, source, kind, title, chunks, tokens FROM documents "
                f"WHERE {SEEN} AND ({condition}) ORDER BY source"
            )
            if found := self._all(query, {"now": now, "p": shown, "q": called}):
                return [Source(*(*row, self.meta(row[0]))) for row in found]
        return []

    def chunks_of(self, document: int) -> list[tuple[int, str]]:
        """(start, text) of a document's passages, in order."""
        return self._all(
            "SELECT start, text FROM chunks WHERE document = ? ORDER BY id", (document,)
        )

    def files(self, now: int) -> list[str]:
        """Sources that were read from a file."""
        query = f"SELECT source FROM documents WHERE size IS NOT NULL AND {SEEN}"
        return [source for (source,) in self._all(query, {"now": now})]

    def counts(self, now: int) -> tuple[int, int, int]:
        """(documents, passages that are there, tokens) of a generation."""
        query = f"SELECT count(*), sum(tokens) FROM documents WHERE {SEEN}"
        ((documents, tokens),) = self._all(query, {"now": now})
        query = (
            f"SELECT count(*) FROM chunks WHERE document IN (SELECT id FROM documents WHERE {SEEN})"
        )
        return documents, self._one(query, {"now": now}), tokens or 0

    # --- writing ---------------------------------------------------------------------------------

    def recover(self, now: int) -> None:
        """Undo what was committed for a generation that was never published, finish what was."""
        purged, last = self.purged(), self.last()
        if last < now or purged > now:
            raise self._damaged(f"belongs to generation {last}, the manifest is of {now}")
        if purged == last == now:
            return
        with self.transaction(write=True):
            self._drop("came > ?", now)
            self._connection.execute("UPDATE documents SET gone = NULL WHERE gone > ?", (now,))
            self._connection.execute("UPDATE state SET value = ? WHERE key = 'last'", (now,))
        self.purge(now)

    def commit(
        self, generation: int, documents: Iterable[NewDocument], gone: Iterable[int]
    ) -> None:
        """Add documents and take others away, visible once `generation` is published."""
        with self.transaction(write=True):
            self._connection.executemany(
                "UPDATE documents SET gone = ? WHERE id = ?",
                ((generation, document) for document in gone),
            )
            for document in documents:
                self._insert(document, generation)
            self._connection.execute("UPDATE state SET value = ? WHERE key = 'last'", (generation,))

    def purge(self, generation: int) -> None:
        """Remove rows that had gone by `generation`, which must be published."""
        with self.transaction(write=True):
            self._drop("gone <= ?", generation)
            self._connection.execute(
                "UPDATE state SET value = max(value, ?) WHERE key = 'purged'", (generation,)
            )

    def note(self, touched: Iterable[Touched], skipped: Iterable[Unread]) -> None:
        """Remember times and metadata of unchanged documents, and which files cannot be read."""
        with self.transaction(write=True):
            for touch in touched:
                self._connection.execute(
                    "UPDATE documents SET size = ?, mtime_ns = ? WHERE id = ?",
                    (touch.size, touch.mtime_ns, touch.document),
                )
                self._set_meta(touch.document, touch.meta)
                self._set_sum(touch.document)
            self._connection.executemany(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?)",
                ((u.source, u.size, u.mtime_ns, u.why) for u in skipped),
            )

    def unread(self, source: str, size: int, mtime_ns: int) -> str | None:
        """Why this very state of a file could not be read, if that was tried."""
        query = "SELECT why FROM skipped WHERE source = ? AND size = ? AND mtime_ns = ?"
        for (why,) in self._all(query, (source, size, mtime_ns)):
            return str(why)
        return None

    def unreadable(self) -> list[Unread]:
        """The states of files that could not be read."""
        query = "SELECT source, size, mtime_ns, why FROM skipped ORDER BY source"
        return [Unread(*row) for row in self._all(query)]

    def _insert(self, document: NewDocument, generation: int) -> None:
        d = document
        self._connection.execute(
            "INSERT INTO documents(id, source, name, kind, title, size, mtime_ns, sha256, "
            "chunks, tokens, came, sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (d.id, d.source, d.source.rsplit("/", 1)[-1], d.kind, d.title, d.size, d.mtime_ns,
             d.sha256, len(d.chunks), d.tokens, generation),
        )  # fmt: skip
        self._set_meta(d.id, d.meta)
        self._set_sum(d.id)
        rows = (
            (n, d.id, c.start, c.end, c.text, c.context, c.heading, c.page)
            for n, c in enumerate(d.chunks, d.id)
        )
        self._connection.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((*row, sum_of_chunk(*row)) for row in rows),
        )
        self._connection.executemany(
            "INSERT INTO words(rowid, title, heading, body, extra) VALUES (?, ?, ?, ?, ?)",
            ((n, d.title, c.heading, lexical.clean(c.text), lexical.added(c.text))
             for n, c in enumerate(d.chunks, d.id)),
        )  # fmt: skip
        self._connection.execute("DELETE FROM skipped WHERE source = ?", (d.source,))

    def _set_meta(self, document: int, meta: Mapping[str, str]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)",
            ((document, k, v) for k, v in meta.items()),
        )

    def _set_sum(self, document: int) -> None:
        for values in self._all(f"SELECT {DOCUMENT} FROM documents WHERE id = ?", (document,)):
            total = sum_of_document(values, self.meta(document))
            self._connection.execute("UPDATE documents SET sum = ? WHERE id = ?", (total, document))

    def _drop(self, condition: str, generation: int) -> None:
        documents = f"SELECT id FROM documents WHERE {condition}"
        chunks = f"SELECT id FROM chunks WHERE document IN ({documents})"
        for statement in (
            f"DELETE FROM words WHERE rowid IN ({chunks})",
            f"DELETE FROM chunks WHERE document IN ({documents})",
            f"DELETE FROM meta WHERE document IN ({documents})",
            f"DELETE FROM documents WHERE {condition}",
        ):
            self._connection.execute(statement, (generation,))

    # --- truth -----------------------------------------------------------------------------------

    def verify(self) -> Iterator[Damage]:
        """What is wrong with the rows, with the words' index, and in SQLite's own eyes.

        Raises IndexBusy where a writer is at work for long.
        """
        try:
            for (line,) in self._connection.execute("PRAGMA integrity_check(10)"):
                if line != "ok":
                    yield Damage(CATALOG, line)
            if self.writable:
                self._connection.execute("INSERT INTO words(words) VALUES ('integrity-check')")
            with self.transaction():
                unsound = list(self._unsound())
            for document in unsound:
                yield Damage(CATALOG, f"document {document} is not as it was written")
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise IndexBusy(f"{self._folder} is being written to; try again") from error
            if disk_is_full(error):
                raise self._full(error) from error
            yield Damage(CATALOG, str(error))

    def _unsound(self) -> Iterator[int]:
        """Documents of which a row does not fit its checksum."""
        bad = {
            values[1]
            for (*values, total) in self._connection.execute(f"SELECT {CHUNK}, sum FROM chunks c")
            if sum_of_chunk(*values) != total
        }
        for (document,) in self._all("SELECT id FROM documents ORDER BY id"):
            if document in bad or not self._fits(document):
                yield document

    def whole(self, document: int) -> NewDocument | None:
        """A document with all its passages, if all of it is as it was written."""
        with contextlib.suppress(LfmError, TypeError, ValueError):
            if not self._fits(document):
                return None
            query = (
                "SELECT source, kind, title, size, mtime_ns, sha256, tokens, chunks "
                "FROM documents WHERE id = ?"
            )
            source, kind, title, size, mtime_ns, sha256, tokens, count = self._one_row(
                query, (document,)
            )
            query = f"SELECT {CHUNK}, sum FROM chunks c WHERE c.id BETWEEN ? AND ? ORDER BY c.id"
            found = self._all(query, (document, document + count - 1))
            if len(found) != count or any(sum_of_chunk(*row[:-1]) != row[-1] for row in found):
                return None
            chunks = tuple(NewChunk(*row[2:-1]) for row in found)
            return NewDocument(
                document, source, kind, title, size, mtime_ns, sha256, tokens, chunks,
                self.meta(document),
            )  # fmt: skip
        return None

    def alive(self, now: int) -> list[int]:
        """Ids of the documents of a generation."""
        found = self._all(f"SELECT id FROM documents WHERE {SEEN} ORDER BY id", {"now": now})
        return [document for (document,) in found]

    def listed(self) -> list[int]:
        """Ids of all documents, of whatever generation."""
        found = self._all("SELECT id FROM documents NOT INDEXED ORDER BY id")
        return [document for (document,) in found]

    def last_ids(self) -> list[int]:
        """The highest ids of passages that are in use."""
        return [self._one("SELECT coalesce(max(id), 0) FROM chunks")]

    def held(self, first: int, last: int, now: int) -> list[tuple[int, int, str]]:
        """(id, passages, source) of the documents with ids from `first` to `last`, ascending."""
        return self._all(
            f"SELECT id, chunks, source FROM documents WHERE {SEEN} "
            "AND id BETWEEN :first AND :last ORDER BY id",
            {"now": now, "first": first, "last": last},
        )

    def shrink(self) -> None:
        """Give back the space of deleted rows. Readers go on: it is a transaction like others."""
        seal.unseal(self._folder)
        with self._sound():
            self._connection.execute("INSERT INTO words(words) VALUES ('optimize')")
            self._connection.execute("VACUUM")


def lost_manifest(folder: Path) -> bool:
    """Was something published in a folder that has no manifest? Asked where none can be read."""
    if not (folder / CATALOG).exists():
        return False
    try:
        with contextlib.closing(Catalog(folder, reads=True)) as catalog:
            return catalog.purged() > 0
    except IndexDamaged:
        return True  # it was whole when it appeared, so somebody harmed both
