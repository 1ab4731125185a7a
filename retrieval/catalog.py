"""Documents, passages, words and metadata in SQLite. Knows no vectors and no manifest.

Every document row tells in which generation it came and went. A reader of generation G sees what
came by G and has not gone by G, so rows that a killed writer left behind are never seen.
"""

# ruff: noqa: S608  (queries are put together from this file's own constants; all values are bound)

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_mm.errors import BadInput, IndexDamaged, LfmError
from retrieval import lexical
from retrieval.storage import CATALOG
from retrieval.types import Damage, Source

SCHEMA = """
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,       -- unique among the documents of one generation
    name TEXT NOT NULL,         -- last part of source
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    size INTEGER,               -- of the file; NULL where the text was given
    mtime_ns INTEGER,
    sha256 TEXT NOT NULL,       -- of the file's bytes or of the text given
    first INTEGER NOT NULL,     -- id of the first passage; those of a document follow each other
    chunks INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    came INTEGER NOT NULL,      -- generation in which it was published
    gone INTEGER                -- generation in which it was deleted or replaced
);
CREATE INDEX documents_source ON documents(source);
CREATE INDEX documents_came ON documents(came);
CREATE INDEX documents_gone ON documents(gone) WHERE gone IS NOT NULL;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    text TEXT NOT NULL, context TEXT NOT NULL, heading TEXT NOT NULL, page INTEGER
);
CREATE INDEX chunks_document ON chunks(document);
CREATE TABLE meta (
    document INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (document, key)
) WITHOUT ROWID;
CREATE TABLE skipped (source TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, why TEXT NOT NULL);
CREATE TABLE state (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO state VALUES ('purged', 0);  -- rows gone by this generation are no longer here
"""
HIDDEN = (  # two queries, for an index each
    "SELECT id FROM documents WHERE came > :now "
    "UNION ALL SELECT id FROM documents WHERE gone <= :now"
)
SEEN = "came <= :now AND (gone IS NULL OR gone > :now)"
FILTERS = {
    "source": "(d.source GLOB :{0} OR d.name GLOB :{0})",
    "type": "(d.kind = :{0} OR substr(lower(d.name), -length(:{0}) - 1) = '.' || :{0})",
    "title": "d.title GLOB :{0}",
    "page": "c.page = CAST(:{0} AS INTEGER)",
}
META = (
    "EXISTS (SELECT 1 FROM meta m WHERE m.document = d.id AND m.key = :{0}_key AND m.value = :{0})"
)


@dataclass(frozen=True)
class NewDocument:
    """A document whose passages are encoded, ready to be published."""

    source: str
    kind: str
    title: str
    size: int | None
    mtime_ns: int | None
    sha256: str
    first: int
    tokens: int
    chunks: tuple[NewChunk, ...]
    meta: Mapping[str, str]


@dataclass(frozen=True)
class NewChunk:
    """A passage. What is encoded is `context`, a line break, and `text`; or `text` alone."""

    start: int
    end: int
    text: str
    context: str
    heading: str
    page: int | None


@dataclass(frozen=True)
class Known:
    """What is remembered of a source."""

    id: int
    size: int | None
    mtime_ns: int | None
    sha256: str
    first: int
    chunks: int
    tokens: int


@dataclass(frozen=True)
class Touched:
    """A document whose content is as it was, but whose file's time or metadata changed."""

    document: int
    size: int | None
    mtime_ns: int | None
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Unread:
    """A state of a file that cannot be read; it is not tried again until it changes."""

    source: str
    size: int
    mtime_ns: int
    why: str


@dataclass(frozen=True)
class Row:
    """A passage with what a hit shows of its document."""

    id: int
    document: int
    source: str
    start: int
    end: int
    text: str
    context: str
    heading: str
    page: int | None


class Catalog:
    """One connection. A reader begins a snapshot before it reads, a writer commits by itself."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        path = folder / CATALOG
        if create and not path.exists():
            _create(path)
        if not path.exists():
            raise IndexDamaged(f"{path} is missing: `lfm2-mm check` tells what else is damaged")
        # WAL needs to write beside the file even to read it; on a read-only folder nobody writes.
        mode = "mode=rw" if os.access(folder, os.W_OK) else "mode=ro&immutable=1"
        self._path = path
        with self._sound():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?{mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=60,
            )
            # The manifest may only name what is durable; FULL makes a commit so.
            self._connection.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[None]:
        """What is read inside belongs to one moment; what is written becomes visible at the end."""
        with self._sound():
            self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    # --- reading ---------------------------------------------------------------------------------

    def purged(self) -> int:
        """Readers of an earlier generation than this must look at the manifest again."""
        return int(self._one("SELECT value FROM state WHERE key = 'purged'"))

    def lexical(
        self,
        terms: Sequence[str],
        k: int,
        now: int,
        where: Mapping[str, str] | None = None,
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

    def select(self, where: Mapping[str, str], now: int) -> np.ndarray:
        """Ids of the passages that `where` allows, ascending."""
        selection, values = self._selection(where, now)
        found = self._all(f"SELECT id FROM ({selection}) ORDER BY id", values)
        return np.array([row[0] for row in found], dtype=np.int64)

    def _selection(self, where: Mapping[str, str], now: int) -> tuple[str, dict[str, Any]]:
        """A query for the passages that fit all of `where`. Values are bound, never spelled out."""
        conditions, values = [SEEN], dict[str, Any](now=now)
        own = self.keys(now)
        for number, (key, value) in enumerate(where.items()):
            if key not in FILTERS and key not in own:
                known = ", ".join([*FILTERS, *own])
                raise BadInput(f"no document has {key!r} to filter by; known here: {known}")
            slot = f"w{number}"
            conditions.append((FILTERS.get(key) or META).format(slot))
            values |= {slot: value.lower() if key == "type" else value}
            if key not in FILTERS:
                values[f"{slot}_key"] = key
        joined = "SELECT c.id AS id FROM chunks c JOIN documents d ON d.id = c.document WHERE "
        return joined + " AND ".join(conditions), values

    def keys(self, now: int) -> list[str]:
        """The metadata keys that any document has."""
        query = (
            f"SELECT DISTINCT m.key FROM meta m JOIN documents d ON d.id = m.document WHERE {SEEN}"
        )
        return [key for (key,) in self._all(f"{query} ORDER BY 1", {"now": now})]

    def rows(self, ids: Iterable[int]) -> list[Row]:
        """Passages by id, in the order asked; one that is not there is left out."""
        query = (
            "SELECT c.id, d.id, d.source, c.start, c.end, c.text, c.context, c.heading, c.page "
            "FROM chunks c JOIN documents d ON d.id = c.document WHERE c.id = ?"
        )
        return [Row(*row) for chunk in ids for row in self._all(query, (int(chunk),))]

    def sources_of(self, ids: Iterable[int]) -> list[str]:
        """The source of each passage."""
        query = "SELECT d.source FROM chunks c JOIN documents d ON d.id = c.document WHERE c.id = ?"
        return [self._one(query, (int(chunk),)) for chunk in ids]

    def find(self, source: str, now: int) -> Known | None:
        """The document of exactly this source."""
        columns = "id, size, mtime_ns, sha256, first, chunks, tokens"
        query = f"SELECT {columns} FROM documents WHERE source = :source AND {SEEN}"
        for row in self._all(query, {"source": source, "now": now}):
            return Known(*row)
        return None

    def meta(self, document: int) -> dict[str, str]:
        return dict(
            self._all("SELECT key, value FROM meta WHERE document = ? ORDER BY key", (document,))
        )

    def sources(self, now: int, pattern: str | None = None) -> list[Source]:
        """The documents, by source; `pattern` is a glob on the source or its last part."""
        glob = (
            " AND (source = :p OR name = :p OR source GLOB :p OR name GLOB :p)" if pattern else ""
        )
        query = f"SELECT id, source, kind, title, chunks, tokens FROM documents WHERE {SEEN}{glob}"
        found = self._all(f"{query} ORDER BY source", {"now": now, "p": pattern})
        return [Source(*(*row, self.meta(row[0]))) for row in found]

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
        """Undo what was committed for a generation that was never published."""
        with self.transaction(write=True):
            self._drop("came > ?", now)
            self._connection.execute("UPDATE documents SET gone = NULL WHERE gone > ?", (now,))
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

    def _insert(self, document: NewDocument, generation: int) -> None:
        d = document
        cursor = self._connection.execute(
            "INSERT INTO documents(source, name, kind, title, size, mtime_ns, sha256, first, "
            "chunks, tokens, came) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (d.source, d.source.rsplit("/", 1)[-1], d.kind, d.title, d.size, d.mtime_ns, d.sha256,
             d.first, len(d.chunks), d.tokens, generation),
        )  # fmt: skip
        row = cursor.lastrowid or 0
        self._set_meta(row, d.meta)
        self._connection.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((n, row, c.start, c.end, c.text, c.context, c.heading, c.page)
             for n, c in enumerate(d.chunks, d.first)),
        )  # fmt: skip
        self._connection.executemany(
            "INSERT INTO words(rowid, title, heading, body, extra) VALUES (?, ?, ?, ?, ?)",
            ((n, d.title, c.heading, lexical.clean(c.text), lexical.added(c.text))
             for n, c in enumerate(d.chunks, d.first)),
        )  # fmt: skip
        self._connection.execute("DELETE FROM skipped WHERE source = ?", (d.source,))

    def _set_meta(self, document: int, meta: Mapping[str, str]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)",
            ((document, k, v) for k, v in meta.items()),
        )

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
        """What SQLite itself finds wrong with its file."""
        try:
            for (line,) in self._connection.execute("PRAGMA integrity_check(10)"):
                if line != "ok":
                    yield Damage(CATALOG, line)
            self._connection.execute("INSERT INTO words(words) VALUES ('integrity-check')")
        except sqlite3.DatabaseError as error:
            yield Damage(CATALOG, str(error))

    def _all(self, query: str, values: Any = ()) -> list[Any]:
        with self._sound():
            return self._connection.execute(query, values).fetchall()

    def _one(self, query: str, values: Any = ()) -> Any:
        found = self._all(query, values)
        if not found:
            raise IndexDamaged(f"{self._path} lacks a row that it must have")
        return found[0][0]

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                told = f"{self._path}: {error}; `lfm2-mm check` tells what else is damaged"
                raise IndexDamaged(told) from error
            raise LfmError(f"{self._path}: {error}; what was published stays") from error


def _create(path: Path) -> None:
    """The empty database appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary, isolation_level=None)
    try:
        connection.executescript(SCHEMA)
        lexical.create(connection)
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    os.replace(temporary, path)
