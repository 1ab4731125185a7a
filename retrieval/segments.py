"""Token vectors on disk: written as a stream, read by memory map, scored exactly. Knows no text.

A segment is three files: NAME.vectors (rows of one codec, one after the other), NAME.rows (int64:
the ids of its passages, ascending, then where the rows of each begin, and the end) and NAME.sums
(uint32: crc32 of each block of the vectors, so that a block is compared before it is first used).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from lfm2_mm.errors import BadInput, IndexDamaged
from retrieval.codecs import CODECS as CODECS
from retrieval.codecs import Codec
from retrieval.estimates import LEAST, Estimates, estimates
from retrieval.storage import SEGMENTS, Entry, Part, flush, flush_folder
from retrieval.types import Damage

SUM_BYTES = 64 << 10  # of the vectors, under one checksum; a passage is some twenty thousand


class SegmentWriter:
    """Takes the vectors of one passage after the other; holds none of them."""

    def __init__(self, folder: Path, number: int, dim: int, codec: Codec) -> None:
        self.name = f"{number:06d}"
        self._folder = folder / SEGMENTS
        self._folder.mkdir(exist_ok=True)
        self._dim, self._codec = dim, codec
        self._ids: list[int] = []
        self._offsets = [0]
        self._copied: Segment | None = None  # of which this is the whole, and nothing else
        self._file: IO[bytes] = (self._folder / f"{self.name}.vectors").open("wb")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def tokens(self) -> int:
        return self._offsets[-1]

    def tokens_of(self, first: int, chunks: int) -> int:
        """Vectors of `chunks` passages from the one with the id `first` on."""
        place = bisect_left(self._ids, first)
        return self._offsets[place + chunks] - self._offsets[place]

    def add(self, chunk: int, vectors: np.ndarray) -> None:
        """Append one passage: `chunk` above all ids before, vectors (T, dim) finite."""
        if vectors.ndim != 2 or vectors.shape[1] != self._dim:
            raise BadInput(
                f"vectors of passage {chunk} have the shape {vectors.shape}; "
                f"this index takes (tokens, {self._dim})"
            )
        if not np.isfinite(vectors).all():
            raise BadInput(f"vectors of passage {chunk} hold NaN or infinity")
        self._file.write(self._codec.encode(vectors))
        self._ids.append(chunk)
        self._offsets.append(self.tokens + len(vectors))
        self._copied = None

    def copy(self, segment: Segment, rows: np.ndarray, first: int | None = None) -> None:
        """Append passages of another segment of this codec and dimension, byte for byte.

        first: they get ids from here on; None keeps their own.
        """
        if segment.entry.codec != self._codec.name:
            raise BadInput(f"rows of {segment.entry.codec} cannot follow {self._codec.name}")
        whole = not self._ids and np.array_equal(rows, np.arange(segment.entry.chunks))
        for place, row in enumerate(rows.tolist()):
            self.put(int(segment.ids[row]) if first is None else first + place, segment.stored(row))
        self._copied = segment if whole else None

    def put(self, chunk: int, rows: np.ndarray) -> None:
        """Append one passage whose rows (T, row_bytes) uint8 are of this codec already."""
        if rows.dtype != np.uint8 or rows.shape[1:] != (self._codec.row_bytes(self._dim),):
            raise BadInput(f"rows {rows.shape} of passage {chunk} are none of {self._codec.name}")
        self._file.write(rows.tobytes())
        self._ids.append(chunk)
        self._offsets.append(self.tokens + len(rows))
        self._copied = None

    def cut(self, chunks: int) -> None:
        """Keep the first `chunks` passages only."""
        self._copied = None
        del self._ids[chunks:], self._offsets[chunks + 1 :]
        self._file.seek(self.tokens * self._codec.row_bytes(self._dim))
        self._file.truncate()

    def finish(self) -> Entry:
        """All files durable; the entry to publish."""
        flush(self._file)
        self._file.close()
        vectors = self._folder / f"{self.name}.vectors"
        sums, whole = summed(vectors)
        parts = {
            vectors.name: Part(vectors.stat().st_size, whole),
            **self._small("rows", np.array([*self._ids, *self._offsets], dtype="<i8").tobytes()),
            **self._small("sums", sums.tobytes()),
        }
        if self.tokens >= LEAST:
            parts |= self._small("estimates", self._estimates(vectors).to_bytes())
        flush_folder(self._folder)
        first, last = self._ids[0], self._ids[-1]
        return Entry(self.name, self._codec.name, first, last, len(self), self.tokens, parts)

    def _estimates(self, vectors: Path) -> Estimates:
        """Those of a segment that was copied as a whole are as good as new ones."""
        if self._copied and self._copied.estimates:
            return self._copied.estimates
        width = self._codec.row_bytes(self._dim)
        stored = _mapped(vectors, self.tokens * width).reshape(-1, width)
        return estimates(self._codec, stored, np.array(self._offsets), self._dim)

    def _small(self, suffix: str, content: bytes) -> dict[str, Part]:
        path = self._folder / f"{self.name}.{suffix}"
        with path.open("wb") as file:
            file.write(content)
            flush(file)
        return {path.name: Part(len(content), hashlib.sha256(content).hexdigest())}

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            (self._folder / f"{self.name}.vectors").unlink()


class Segment:
    """One segment, open for reading; only pages that are scored come into memory."""

    def __init__(self, folder: Path, entry: Entry, dim: int) -> None:
        self.entry = entry
        self._path = folder / SEGMENTS / f"{entry.name}.vectors"
        if entry.codec not in CODECS:
            raise _damaged(self._path, f"is told to be {entry.codec!r}, which is no codec")
        self._codec, self._dim = CODECS[entry.codec], dim
        width = self._codec.row_bytes(dim)
        numbers = np.frombuffer(_whole(folder, entry, "rows"), "<i8")
        self.ids = numbers[: entry.chunks]
        self.bounds = numbers[entry.chunks :]
        self._sums = np.frombuffer(_whole(folder, entry, "sums"), "<u4")
        self._bytes = _mapped(self._path, entry.tokens * width)
        self._rows = self._bytes.reshape(-1, width)
        self._width = width
        estimated = self._path.with_suffix(".estimates")  # mapped now: a writer may remove it
        part = entry.parts.get(estimated.name)
        self._mapped_estimates = _mapped(estimated, part.bytes) if part else None
        self._trusted = np.zeros(len(self._sums), dtype=bool)  # blocks that were compared
        self.live = np.ones(entry.chunks, dtype=bool)
        for first, last in entry.dead:
            self.live[slice(*np.searchsorted(self.ids, (first, last)))] = False

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Rows of those of `ids` (ascending) that live here."""
        places = np.searchsorted(self.ids, ids)
        places[places == len(self.ids)] = 0
        rows = places[self.ids[places] == ids] if len(self.ids) else places[:0]
        return rows[self.live[rows]]

    def among(self, allowed: np.ndarray | None) -> np.ndarray:
        """Rows of those of `allowed` (ascending ids; None: all) that live here."""
        return np.flatnonzero(self.live) if allowed is None else self.find(allowed)

    def vectors(self, row: int) -> np.ndarray:
        """(T, dim) float32 of one passage."""
        return self._codec.decode(self.stored(row), self._dim)

    def stored(self, row: int) -> np.ndarray:
        """(T, row_bytes) uint8 of one passage."""
        self.trust(np.array([row]))
        return self._rows[self.bounds[row] : self.bounds[row + 1]]

    def trust(self, rows: np.ndarray) -> None:
        """Compare the blocks that hold these passages with their checksums, each block once.

        Whatever reads `_rows` calls this first. Raises IndexDamaged.
        """
        if self._trusted.all():
            return
        for block in np.flatnonzero(self._touched(rows) & ~self._trusted).tolist():
            if not self._sound(block):
                raise IndexDamaged(
                    f"{self._path} does not fit its checksum at byte {block * SUM_BYTES:,}: "
                    "`lfm2-mm check` tells what is damaged, `repair` mends it"
                )
            self._trusted[block] = True

    def damaged(self) -> np.ndarray:
        """Rows of the passages that lie in blocks which do not fit their checksum."""
        bad = np.array([not self._sound(block) for block in range(len(self._sums))], dtype=bool)
        first, last = self._blocks(np.arange(self.entry.chunks))
        before = np.concatenate([[0], np.cumsum(bad)])
        return np.flatnonzero(before[last] - before[first])

    def _sound(self, block: int) -> bool:
        content = self._bytes[block * SUM_BYTES : (block + 1) * SUM_BYTES]
        return zlib.crc32(content.data) == int(self._sums[block])

    def _touched(self, rows: np.ndarray) -> np.ndarray:
        """Which blocks (as bool) hold vectors of some passages."""
        first, last = self._blocks(rows)
        edges = np.zeros(len(self._sums) + 1, dtype=np.int64)
        np.add.at(edges, first, 1)
        np.add.at(edges, last, -1)
        return np.cumsum(edges[:-1]) > 0

    def _blocks(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of each passage, from and up to; none of one that has no vectors."""
        first, last = self.bounds[rows] * self._width, self.bounds[rows + 1] * self._width
        start = first // SUM_BYTES
        return start, np.where(first < last, (last - 1) // SUM_BYTES + 1, start)

    def scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Exact MaxSim of the passages in `rows`, read where they lie."""
        self.trust(rows)
        return self._codec.scores(query, self._rows, self.bounds[rows], self.bounds[rows + 1])

    def estimated(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """Estimates of MaxSim of the passages in `rows`; None where the segment has none."""
        if self.estimates is None:
            return None
        return self.estimates.scores(query, self.bounds[rows], self.bounds[rows + 1], rows)

    @functools.cached_property
    def estimates(self) -> Estimates | None:
        """What a large segment has; compared with their checksum when first needed."""
        if self._mapped_estimates is None:
            return None
        name = f"{self.entry.name}.estimates"
        path = self._path.with_name(name)
        if hashlib.sha256(self._mapped_estimates.data).hexdigest() != self.entry.parts[name].sha256:
            raise _damaged(path, "does not fit its checksum")
        try:
            return Estimates.from_buffer(
                self._mapped_estimates.data, self._dim, self.entry.tokens, self.entry.chunks
            )
        except ValueError as error:
            raise _damaged(path, f"cannot be ({error})") from error


class Exact:
    """Scores passages by exact MaxSim, and proposes the best by scoring all of them."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments

    def candidates(
        self, query: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores of the k best of `allowed` (ascending ids; None: all), best first."""
        ids = [np.empty(0, dtype=np.int64)]
        scores = [np.empty(0, dtype=np.float32)]
        for segment in self._segments:
            rows = segment.among(allowed)
            ids.append(segment.ids[rows])
            scores.append(segment.scores(query, rows))
        return best(np.concatenate(ids), np.concatenate(scores), k)

    def scores(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Exact MaxSim (N,) of `ids` in any order; -inf for one that is not in the index."""
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        found = np.full(len(ids), -np.inf, dtype=np.float32)
        for segment in self._segments:
            rows = segment.find(ascending)
            places = np.searchsorted(ascending, segment.ids[rows])
            found[order[places]] = segment.scores(query, rows)
        return found

    def vectors(self, chunk: int) -> np.ndarray:
        """(T, dim) float32 of one passage."""
        for segment in self._segments:
            for row in segment.find(np.array([chunk])):
                return segment.vectors(int(row))
        raise KeyError(chunk)


def best(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best, best first; equal scores in the order of ids, so that results repeat."""
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def verify(folder: Path, entry: Entry) -> Iterator[Damage]:
    """What of a segment is not as it was written; every byte is read."""
    for name, part in entry.parts.items():
        path = folder / SEGMENTS / name
        label = f"{SEGMENTS}/{name}"
        if not path.is_file():
            yield Damage(label, "is missing")
        elif path.stat().st_size != part.bytes:
            yield Damage(label, f"has {path.stat().st_size} bytes; {part.bytes} were written")
        elif digest(path) != part.sha256:
            yield Damage(label, "does not fit its checksum")


def sweep(folder: Path, entries: Sequence[Entry]) -> None:
    """Remove files that no published segment names; on Windows a mapped one stays till later."""
    named = {name for entry in entries for name in entry.parts}
    if not (folder / SEGMENTS).is_dir():
        return
    for path in (folder / SEGMENTS).iterdir():
        if path.name not in named:
            with contextlib.suppress(PermissionError):
                os.unlink(path)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summed(path: Path) -> tuple[np.ndarray, str]:
    """crc32 (blocks,) of a file's blocks of SUM_BYTES, and its sha256 in hex."""
    found, whole = [], hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(SUM_BYTES):
            found.append(zlib.crc32(block))
            whole.update(block)
    return np.array(found, dtype="<u4"), whole.hexdigest()


def _whole(folder: Path, entry: Entry, suffix: str) -> bytes:
    """A small file of a segment, compared with its checksum. Raises IndexDamaged."""
    name = f"{entry.name}.{suffix}"
    content = (folder / SEGMENTS / name).read_bytes()
    part = entry.parts[name]
    if len(content) != part.bytes or hashlib.sha256(content).hexdigest() != part.sha256:
        raise _damaged(folder / SEGMENTS / name, "does not fit its checksum")
    return content


def _mapped(path: Path, size: int) -> np.ndarray:
    """A file of `size` bytes, mapped. Raises IndexDamaged for another size."""
    found = path.stat().st_size
    if found != size:
        raise _damaged(path, f"has {found} bytes; {size} were written")
    if not size:
        return np.empty(0, dtype=np.uint8)  # an empty file cannot be mapped
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(size,))


def _damaged(path: Path, what: str) -> IndexDamaged:
    return IndexDamaged(
        f"{path} {what}: `lfm2-mm check` tells what else is damaged, `repair` mends it"
    )
