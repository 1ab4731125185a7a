"""What the catalog takes and gives: documents, passages, and the checksum of each row."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
class NewDocument:
    """A document whose passages are encoded, ready to be published."""

    id: int  # of its first passage; the others follow it
    source: str
    kind: str
    title: str
    size: int | None
    mtime_ns: int | None
    sha256: str
    tokens: int
    chunks: tuple[NewChunk, ...]
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Known:
    """What is remembered of a source."""

    id: int  # of the document and of its first passage
    size: int | None
    mtime_ns: int | None
    sha256: str
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


def sum_of_chunk(
    chunk: int, document: int, start: int, end: int, text: str, context: str, heading: str,
    page: int | None,
) -> int:  # fmt: skip
    """The checksum that is stored with a passage."""
    return _sum(chunk, document, start, end, text, context, heading, page)


def sum_of_document(row: Sequence[Any], meta: Mapping[str, str]) -> int:
    """The checksum of a document: over what does not change of its row, and its metadata."""
    return _sum(*row, sorted(meta.items()))


def _sum(*values: Any) -> int:
    return zlib.crc32(json.dumps(values).encode())
