"""Whole collections from one store into another, index folders included. Knows no engine.

What is there already stays, so a copy that was stopped goes on. Every document is read back from
the target and compared with what was sent.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import NoReturn

from lfm2_mm.errors import BadInput, IndexDamaged
from retrieval.storage import Stamp
from retrieval.stores.seam import CandidateStore, Heading, Passage, grouped
from retrieval.stores.where import In
from retrieval.stores.writing import StoreWriter, writing
from retrieval.update import Run, keep
from retrieval.writer import Keeping

BATCH = 1024  # passages that travel together

Tell = Callable[[int, int, str], None]  # documents done, of how many, which one


@dataclass(frozen=True)
class Copied:
    """What a copy did. The checksum is over all documents, sent and read back."""

    documents: int
    chunks: int
    tokens: int
    copied: int  # documents; the others were there
    unchanged: int
    checksum: str
    seconds: float


def copy(source: CandidateStore, target: CandidateStore, tell: Tell | None = None) -> Copied:
    """Bring all documents of `source` into `target`, which may hold others.

    The rows travel as they are, so both rank alike. Raises IndexMismatch where the two were made
    with different models or settings, IndexDamaged for what does not arrive as it was sent.
    """
    started = time.monotonic()
    head = source.head()
    if head is None:
        raise BadInput(f"{source.address} is empty: there is nothing to copy")
    total = sum(1 for _ in source.headings())
    sent, came = hashlib.sha256(), hashlib.sha256()
    documents = chunks = tokens = 0
    with writing(target, _no_encoder, Keeping(head.stamp.codec, head.stamp.pool)) as writer:
        writer.require_alike(head.stamp)
        run = Run(writer, _no_encoder, {})
        for batch in _batches(source):
            _take(batch, head.stamp, run, writer)
            writer.commit()
            held = _there(target, [group[0].heading.source for group in batch])
            for group in batch:
                heading = group[0].heading
                one, other = _digest(group, heading), _digest(held.get(heading.source), heading)
                if one != other:
                    raise IndexDamaged(
                        f"{heading.source!r} is not in {target.address} as {source.address} has "
                        "it: delete it there and copy again"
                    )
                sent.update(one)
                came.update(other)
                documents, chunks = documents + 1, chunks + heading.chunks
                tokens += heading.tokens
                if tell:
                    tell(documents, total, heading.source)
        if sent.digest() != came.digest() or documents != total:
            raise IndexDamaged(f"{documents} documents of {total} in {source.address} were read")
        target.tidy()
        copied = writer.tally.added + writer.tally.updated
    return Copied(
        documents, chunks, tokens, copied, documents - copied, came.hexdigest(),
        time.monotonic() - started,
    )  # fmt: skip


def take_all(source: CandidateStore, run: Run[StoreWriter], writer: StoreWriter) -> None:
    """Bring all documents of `source` into what `run` writes. Raises IndexMismatch."""
    if (head := source.head()) is None:
        return
    writer.require_alike(head.stamp)
    for batch in _batches(source):
        _take(batch, head.stamp, run, writer)


def _batches(source: CandidateStore) -> Iterator[list[list[Passage]]]:
    """Documents, some together. Raises IndexDamaged for one that is not as it was written."""
    batch: list[list[Passage]] = []
    for group in grouped(source.scan()):
        heading = group[0].heading
        if len(group) != heading.chunks or not all(one.sound for one in group):
            raise IndexDamaged(
                f"{source.address}: {heading.source!r} is not as it was written; "
                "`lfm2-mm check` tells what else is damaged"
            )
        batch.append(group)
        if sum(map(len, batch)) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _take(
    batch: Sequence[list[Passage]], stamp: Stamp, run: Run[StoreWriter], writer: StoreWriter
) -> None:
    writer.expect(group[0].heading.source for group in batch)
    for group in batch:
        theirs = group[0].heading
        run.advance(files=run.progress.files + 1, source=theirs.source)
        ours = writer.heading(theirs.source)
        known = writer.known(theirs.source)
        if ours and known and known.sha256 == theirs.sha256:
            keep(run, known, theirs.size, theirs.mtime_ns, theirs.meta)
            continue
        meta: Mapping[str, str] = {**(ours.meta if ours else {}), **theirs.meta}
        heading = replace(theirs, meta=meta)
        writer.take(stamp, [replace(one, heading=heading) for one in group], known)


def _there(target: CandidateStore, sources: Sequence[str]) -> dict[str, list[Passage]]:
    """What the target holds of some sources."""
    ids = tuple(heading.id for heading in target.headings(In("source", tuple(sources))))
    found = grouped(target.scan(In("document", ids)))
    return {group[0].heading.source: group for group in found}


def _digest(group: Sequence[Passage] | None, told: Heading) -> bytes:
    """sha256 of a document but for its ids, and for metadata that `told` does not have."""
    total = hashlib.sha256()
    for one in group or ():
        h = one.heading
        meta = {key: h.meta.get(key) for key in sorted(told.meta)}
        facts = (h.source, h.kind, h.title, h.sha256, h.chunks, h.tokens, meta, astuple(one.chunk))
        total.update(json.dumps(facts).encode())
        total.update(one.rows.tobytes())
    return total.digest()


def _no_encoder() -> NoReturn:
    raise AssertionError("rows come encoded")
