"""NAME.json: what a segment says of itself, so that an index without its manifest can be mended."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retrieval.storage import SEGMENTS, Entry, Part, Stamp, entry_of, read_sealed, write_sealed


@dataclass(frozen=True)
class Held:
    """A document whose vectors a segment holds."""

    id: int  # of the document and of its first passage
    chunks: int
    source: str


@dataclass(frozen=True)
class Header:
    """All that the manifest says of a segment but for what is deleted, and its documents."""

    stamp: Stamp
    entry: Entry
    documents: tuple[Held, ...]


def write(folder: Path, entry: Entry, stamp: Stamp, documents: Sequence[Held]) -> Entry:
    """Write down what a segment holds; the entry with this file among its parts."""
    name = f"{entry.name}.json"
    raw = {
        "stamp": asdict(stamp),
        "entry": asdict(entry),
        "documents": [[held.id, held.chunks, held.source] for held in documents],
    }
    content = write_sealed(folder / SEGMENTS / name, raw)
    part = Part(len(content), hashlib.sha256(content).hexdigest())
    return replace(entry, parts={**entry.parts, name: part})


def read(folder: Path, name: str) -> Header:
    """What the segment `name` says. Raises ValueError, or OSError where it cannot be read."""
    path = folder / SEGMENTS / f"{name}.json"
    content = path.read_bytes()
    raw = read_sealed(path)
    entry = entry_of(raw["entry"])
    part = Part(len(content), hashlib.sha256(content).hexdigest())
    return Header(
        Stamp(**raw["stamp"]),
        replace(entry, parts={**entry.parts, path.name: part}),
        tuple(Held(*held) for held in raw["documents"]),
    )
