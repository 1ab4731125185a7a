"""Estimates of MaxSim that cost a hundredth of it: a code for each vector, a mean for each passage.

The vectors of a segment have centroids, and each vector the number of the nearest one (PLAID's
codes: Santhanam et al. 2022). A passage's estimate is the MaxSim of its vectors' centroids, in
whole bytes, plus the query times the mean of what the centroids leave of its vectors: what all the
words of a passage share, its topic, is what centroids of words miss. That is cheap enough for every
passage of a large index, so no list of passages has to be pruned, filtered late, or repaired.

Knows arrays, no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval import kernels
from retrieval.codecs import CODECS, Codec
from retrieval.kernel_ir import LANES
from retrieval.scoring import blocks

LEAST = 1 << 17  # vectors of a segment that is worth them
SAMPLE = 40  # vectors a centroid that k-means looks at
ROUNDS = 4
BLOCK = 1 << 15  # vectors at once
INT8 = CODECS["int8"]


@dataclass(frozen=True)
class Estimates:
    """Of the N passages and T vectors of one segment."""

    centroids: np.ndarray  # (K, dim) float32, of unit length
    codes: np.ndarray  # (T,) uint16
    means: np.ndarray  # (N, dim) float16: mean of a passage's vectors less their centroids

    def scores(
        self, query: np.ndarray, starts: np.ndarray, ends: np.ndarray, passages: np.ndarray
    ) -> np.ndarray:
        """Estimates (N,) of MaxSim for some passages, which hold the vectors starts[i]:ends[i]."""
        filled = np.flatnonzero(ends > starts)
        found = np.full(len(starts), -np.inf, dtype=np.float32)
        found[filled] = self.means[passages[filled]].astype(np.float32) @ query.sum(axis=0)
        products = np.clip(np.rint(self.centroids @ (255 * query.T)), 0, 255).astype(np.uint8)
        for first in range(0, len(query), LANES):
            part = products[:, first : first + LANES]
            table = np.zeros((len(products), LANES), dtype=np.uint8)
            table[:, : part.shape[1]] = part
            sums = kernels.interaction(table, self.codes, starts[filled], ends[filled])
            found[filled] += sums / np.float32(255)
        return found

    def to_bytes(self) -> bytes:
        """Centroids (float16), codes, means, one after the other."""
        return (
            self.centroids.astype("<f2").tobytes()
            + self.codes.astype("<u2").tobytes()
            + self.means.astype("<f2").tobytes()
        )

    @classmethod
    def from_buffer(
        cls, content: memoryview | bytes, dim: int, tokens: int, passages: int
    ) -> Estimates:
        """What `to_bytes` wrote. Raises ValueError for what it cannot have written."""
        count, rest = divmod(len(content) - 2 * (tokens + passages * dim), 2 * dim)
        if rest or count < 1:
            raise ValueError(f"{len(content)} bytes do not fit {tokens} codes")
        halves = np.frombuffer(content, "<f2", count * dim)
        codes = np.frombuffer(content, "<u2", tokens, offset=2 * count * dim)
        means = np.frombuffer(content, "<f2", passages * dim, offset=2 * (count * dim + tokens))
        if tokens and codes.max() >= count:
            raise ValueError(f"code {codes.max()} of {count} centroids")
        return cls(halves.reshape(-1, dim).astype(np.float32), codes, means.reshape(-1, dim))


def estimates(codec: Codec, rows: np.ndarray, bounds: np.ndarray, dim: int) -> Estimates:
    """Those of a segment: `rows` of its codec, passage i being rows bounds[i]:bounds[i + 1]."""
    tokens = len(rows)
    count = min(LANES * max(1, round(2 * tokens**0.5 / LANES)), tokens, 1 << 16)
    chosen = np.random.default_rng(0).choice(tokens, min(tokens, SAMPLE * count), replace=False)
    centroids = learn(_int8(codec, rows[np.sort(chosen)], dim), dim, count)
    codes, means = np.empty(tokens, np.uint16), np.zeros((len(bounds) - 1, dim), np.float16)
    for first, last in blocks(bounds, BLOCK):
        block = slice(bounds[first], bounds[last])
        codes[block] = nearest(_int8(codec, rows[block], dim), centroids)
        left = codec.decode(rows[block], dim) - centroids[codes[block]]
        filled = first + np.flatnonzero(np.diff(bounds[first : last + 1]))
        if len(filled):
            sums = np.add.reduceat(left, bounds[filled] - bounds[first], axis=0)
            means[filled] = sums / (bounds[filled + 1] - bounds[filled])[:, None]
    return Estimates(centroids, codes, means)


def learn(rows: np.ndarray, dim: int, count: int) -> np.ndarray:
    """(count, dim) float32 centroids of unit length by spherical k-means over int8 rows."""
    first = np.random.default_rng(0).choice(len(rows), count, replace=False)
    centroids = _normal(INT8.decode(rows[np.sort(first)], dim))
    for _ in range(ROUNDS):
        codes = nearest(rows, centroids)
        sums = np.zeros((count, dim), dtype=np.float32)
        for begin in range(0, len(rows), BLOCK):
            _add(sums, codes[begin : begin + BLOCK], INT8.decode(rows[begin : begin + BLOCK], dim))
        filled = sums.any(axis=1)  # one that nothing is nearest to stays where it was
        centroids[filled] = _normal(sums[filled])
    return centroids


def nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(T,) int32: the centroid with the largest product, for each int8 row."""
    dim = centroids.shape[1]
    loops = kernels.loaded(INT8.row_bytes(dim) - 4, 8)
    if loops:
        missing = -len(centroids) % LANES  # a lane of zeros could win
        whole = np.concatenate([centroids, np.repeat(centroids[:1], missing, axis=0)])
        return loops.nearest(loops.panels(whole, 128), rows)
    found = [np.empty(0, dtype=np.int32)]
    for first in range(0, len(rows), BLOCK // 8):
        products = INT8.decode(rows[first : first + BLOCK // 8], dim) @ centroids.T
        found.append(products.argmax(axis=1).astype(np.int32))
    return np.concatenate(found)


def _add(sums: np.ndarray, codes: np.ndarray, vectors: np.ndarray) -> None:
    """sums[codes] += vectors, where codes repeat."""
    order = np.argsort(codes, kind="stable")
    ranked = codes[order]
    begins = np.flatnonzero(np.diff(ranked, prepend=-1))
    sums[ranked[begins]] += np.add.reduceat(vectors[order], begins, axis=0)


def _int8(codec: Codec, rows: np.ndarray, dim: int) -> np.ndarray:
    """The rows of a codec as those of int8."""
    if codec.name == INT8.name:
        return np.ascontiguousarray(rows)
    encoded = INT8.encode(codec.decode(rows, dim))
    return np.frombuffer(encoded, np.uint8).reshape(len(rows), -1)


def _normal(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))
