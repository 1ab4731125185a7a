"""The tables of the catalog. docs/index-format.md tells what is in them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from retrieval import lexical

SCHEMA = """
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,     -- of its first passage; those of a document follow each other
    source TEXT NOT NULL,       -- unique among the documents of one generation
    name TEXT NOT NULL,         -- last part of source
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    size INTEGER,               -- of the file; NULL where the text was given
    mtime_ns INTEGER,
    sha256 TEXT NOT NULL,       -- of the file's bytes or of the text given
    chunks INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    came INTEGER NOT NULL,      -- generation in which it was published
    gone INTEGER,               -- generation in which it was deleted or replaced
    sum INTEGER NOT NULL        -- crc32 of what does not change and of the metadata
);
CREATE INDEX documents_source ON documents(source);
CREATE INDEX documents_came ON documents(came);
CREATE INDEX documents_gone ON documents(gone) WHERE gone IS NOT NULL;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    text TEXT NOT NULL, context TEXT NOT NULL, heading TEXT NOT NULL, page INTEGER,
    sum INTEGER NOT NULL
);
CREATE INDEX chunks_document ON chunks(document);
CREATE TABLE meta (
    document INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (document, key)
) WITHOUT ROWID;
CREATE TABLE skipped (source TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, why TEXT NOT NULL);
CREATE TABLE state (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO state VALUES ('purged', 0);  -- rows gone by this generation are no longer here
INSERT INTO state VALUES ('last', 0);    -- the generation committed last
"""


def create(path: Path) -> None:
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
