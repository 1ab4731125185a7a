"""What an engine must do to hold a collection: keep passages, propose some, hand them out again.

The engine chooses candidates by whatever it is good at; the rows of our codec travel through it as
opaque bytes, and `retrieval/stores/collection.py` scores those exactly. Knows no engine.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from retrieval.codecs import CODECS
from retrieval.rows import NewChunk, NewDocument, Row
from retrieval.storage import Stamp
from retrieval.stores.where import Where


@dataclass(frozen=True)
class Head:
    """What a store says of itself."""

    stamp: Stamp
    next_id: int = 1  # of the next passage; ids are never given twice
    done: int = 1  # passages from this id on belong to a write that is not finished
    keys: Mapping[str, bool] = field(default_factory=dict)  # metadata: are all values numbers?
    effort: int | None = None  # passages that a search scores exactly; None: its own choice


@dataclass(frozen=True)
class Heading:
    """A document without its texts and vectors."""

    id: int  # of its first passage; the others follow it
    source: str
    kind: str
    title: str
    size: int | None
    mtime_ns: int | None
    sha256: str
    chunks: int
    tokens: int
    meta: Mapping[str, str]

    @property
    def name(self) -> str:
        """The last part of the source."""
        return self.source.rsplit("/", 1)[-1]

    def whole(self, chunks: Sequence[NewChunk]) -> NewDocument:
        """The document with its passages."""
        return NewDocument(
            self.id, self.source, self.kind, self.title, self.size, self.mtime_ns, self.sha256,
            self.tokens, tuple(chunks), self.meta,
        )  # fmt: skip

    @classmethod
    def of(cls, document: NewDocument) -> Heading:
        """What `document` says of itself."""
        d = document
        return cls(
            d.id, d.source, d.kind, d.title, d.size, d.mtime_ns, d.sha256, len(d.chunks), d.tokens,
            dict(d.meta),
        )  # fmt: skip


@dataclass(frozen=True)
class Passage:
    """One passage as a store keeps it."""

    id: int
    heading: Heading
    chunk: NewChunk
    rows: np.ndarray  # (T, row_bytes) uint8 of the codec
    sum: int  # of all of this; compared whenever it is read

    @property
    def row(self) -> Row:
        """What a hit shows."""
        c = self.chunk
        return Row(
            self.id, self.heading.id, self.heading.source, c.start, c.end, c.text, c.context,
            c.heading, c.page,
        )  # fmt: skip

    @property
    def sound(self) -> bool:
        """Is it as it was written?"""
        return self.sum == checksum(self.id, self.heading, self.chunk, self.rows)

    def vectors(self, stamp: Stamp) -> np.ndarray:
        """(T, dim) float32."""
        return CODECS[stamp.codec].decode(self.rows, stamp.dim)

    @classmethod
    def made(cls, chunk_id: int, heading: Heading, chunk: NewChunk, rows: np.ndarray) -> Passage:
        """A new one, with its checksum."""
        return cls(chunk_id, heading, chunk, rows, checksum(chunk_id, heading, chunk, rows))


def checksum(chunk_id: int, heading: Heading, chunk: NewChunk, rows: np.ndarray) -> int:
    """crc32 over all of a passage but the time and size of its file."""
    h = heading
    told = (
        chunk_id, h.id, h.source, h.kind, h.title, h.sha256, h.chunks, h.tokens,
        sorted(h.meta.items()), chunk.start, chunk.end, chunk.text, chunk.context, chunk.heading,
        chunk.page,
    )  # fmt: skip
    return zlib.crc32(np.ascontiguousarray(rows).data, zlib.crc32(json.dumps(told).encode()))


@dataclass(frozen=True)
class Caps:
    """What an engine can do by itself; what it cannot is done here, and then for it."""

    engine: str
    proposes: str  # how it chooses candidates, for a person
    patterns: bool = False  # evaluates `where.Glob`
    exact: bool = False  # its order is MaxSim, but for rounding: few candidates are enough


class CandidateStore(Protocol):
    """A collection in an engine. Ids are ours: 64 bits, at least 1, ascending within a document.

    Vectors are normalised. Conditions are checked before anything is proposed, never after.
    """

    address: str
    caps: Caps
    folder: Path | None  # on this machine, with nothing in it that could be indexed

    def head(self) -> Head | None:
        """What was put last; None for a store in which nothing was ever put."""
        ...

    def put_head(self, head: Head) -> None:
        """Make it durable. The first one makes the store."""
        ...

    def upsert(
        self, passages: Sequence[Passage], gone: Sequence[int] = (), replaces: bool = False
    ) -> None:
        """Whole documents become visible, then those with the ids in `gone` go; durable after.

        replaces: ids of `passages` may be there already.
        """
        ...

    def delete(self, where: Where) -> None:
        """Remove passages, durably."""
        ...

    def count(self, where: Where | None = None) -> int:
        """How many passages."""
        ...

    def candidates(
        self, query: np.ndarray, count: int, where: Where | None = None
    ) -> Sequence[int]:
        """Ids of about `count` passages that are worth an exact score; query (Q, dim) float32."""
        ...

    def fetch(self, ids: Sequence[int]) -> list[Passage]:
        """Passages in any order; one that is not there is left out."""
        ...

    def scan(self, where: Where | None = None) -> Iterator[Passage]:
        """All passages, with ascending ids."""
        ...

    def headings(self, where: Where | None = None) -> Iterator[Heading]:
        """The documents of which the first passage fits, in any order."""
        ...

    def tidy(self) -> None:
        """After a run: index what is new, if there is enough of it."""
        ...

    def optimize(self) -> None:
        """Give space back and index everything."""
        ...

    def bytes(self) -> int:
        """Size on disk; 0 where the engine does not tell."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Be the only writer. Raises IndexBusy where another one is known."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def grouped(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    """Passages with ascending ids -> those of one document together."""
    group: list[Passage] = []
    for passage in passages:
        if group and group[0].heading.id != passage.heading.id:
            yield group
            group = []
        group.append(passage)
    if group:
        yield group
