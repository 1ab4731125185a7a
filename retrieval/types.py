"""The nouns of retrieval: what a search and a run over an index answer. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Mode = Literal["hybrid", "colbert", "lexical"]
MODES: tuple[Mode, ...] = ("hybrid", "colbert", "lexical")


@dataclass(frozen=True)
class Match:
    """A word of the query and the word of the passage that it matched."""

    token: str  # the query's word
    word: str  # the passage's word
    start: int  # characters within Hit.text: Hit.text[start:end] == word
    end: int
    score: float  # cosine of the two token vectors; 1.0 where the words themselves were compared


@dataclass(frozen=True)
class Hit:
    """A passage that was found. `start` and `end` are characters of the document's text."""

    rank: int  # from 1
    score: float  # of the mode: fused 0..1, MaxSim, or BM25; only comparable within one search
    id: int  # of the passage; never given again to another
    document: int
    source: str
    start: int
    end: int
    text: str
    page: int | None
    heading: str
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """What could not be indexed."""

    path: str
    why: str


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Bytes are those of the files, so the remaining time can be told."""

    files: int  # done
    of_files: int  # 0 where texts come one by one and nobody knows how many
    bytes: int  # done
    of_bytes: int
    chunks: int  # encoded in this run
    tokens: int
    source: str  # being worked on


@dataclass(frozen=True)
class Report:
    """What a run did, and what the index holds after it."""

    documents: int
    chunks: int
    tokens: int
    bytes: int  # of the index folder
    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: tuple[Skipped, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Files encoded into a segment folder, which an index can attach."""

    folder: Path
    documents: int
    chunks: int
    tokens: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Info:
    """What an index holds. As long as nothing was published `model` and `codec` are None."""

    documents: int
    chunks: int
    tokens: int  # vectors; fewer than the texts' tokens where they were pooled
    bytes: int
    model: str | None
    version: int
    codec: str | None = None  # how vectors are kept
    bytes_per_token: int = 0
    pool: int = 1  # of so many vectors one was made


@dataclass(frozen=True)
class Source:
    """A document in an index."""

    document: int
    source: str
    kind: str
    title: str
    chunks: int
    tokens: int
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Damage:
    """A file of an index that does not hold what was written, and in which way."""

    file: str
    what: str
