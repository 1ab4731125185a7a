"""Estimates of MaxSim that cost a hundredth of it: a code for each vector, a mean for each passage.

The vectors of a segment have centroids, and each vector the number of the nearest one (PLAID's
codes: Santhanam et al. 2022). A passage's estimate is the MaxSim of its vectors' centroids, in
whole bytes, plus the query times the mean of what the centroids leave of its vectors: what all the
words of a passage share, its topic, is what centroids of words miss. (How much of that counts is
tried out: much on some collections, nothing on others.) All this is cheap enough for every passage
of a large index, so no list of passages has to be pruned, filtered late, or repaired.

Knows arrays, no files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retrieval import kernels
from retrieval.codecs import CODECS, Codec
from retrieval.kernel_ir import LANES
from retrieval.scoring import blocks

LEAST = 1 << 17  # vectors of a segment that is worth them
MOST = 1 << 13  # centroids: their products with a query stay in a core's second-level cache
SAMPLE = 16  # vectors a centroid that k-means looks at
ROUNDS = 3
TRIALS = 12  # passages that choose the weight of the means
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
BLOCK = 1 << 15  # vectors at once
INT8 = CODECS["int8"]


@dataclass(frozen=True)
class Estimates:
    """Of the N passages and T vectors of one segment."""

    centroids: np.ndarray  # (K, row_bytes) uint8: rows of int8, of unit length
    codes: np.ndarray  # (T,) uint16
    means: np.ndarray  # (N, row_bytes) uint8: mean of a passage's vectors less their centroids
    weight: float  # of the means: they help where a passage's words share much, and harm elsewhere

    def scores(
        self, query: np.ndarray, starts: np.ndarray, ends: np.ndarray, passages: np.ndarray
    ) -> np.ndarray:
        """Estimates (N,) of MaxSim for some passages, which hold the vectors starts[i]:ends[i]."""
        filled = np.flatnonzero(ends > starts)
        found = np.full(len(starts), -np.inf, dtype=np.float32)
        found[filled] = 0
        if self.weight:
            found[filled] = self._shared(query, passages[filled])
        for table in self._tables(query):
            sums = kernels.interaction(table, self.codes, starts[filled], ends[filled])
            found[filled] += sums / np.float32(255)
        return found

    def _shared(self, query: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """What the means of some passages add to their scores."""
        whole, dim = self.weight * query.sum(axis=0, keepdims=True), query.shape[1]
        everything = len(passages) == len(self.means)
        means = self.means if everything else self.means[passages]
        loops = kernels.loaded(INT8.row_bytes(dim) - 4, 8)
        if loops:
            return loops.products(loops.panels(whole, 128), means)
        return np.asarray(INT8.decode(means, dim) @ whole[0])

    def _tables(self, query: np.ndarray) -> np.ndarray:
        """(panels, K, LANES) uint8: products of centroids and query tokens in 255ths."""
        dim = query.shape[1]
        loops = kernels.loaded(INT8.row_bytes(dim) - 4, 8)
        if loops:
            return loops.table(loops.panels(query, 128), self.centroids)
        products = INT8.decode(self.centroids, dim) @ query.T
        padded = np.zeros((len(products), -(-len(query) // LANES) * LANES), dtype=np.uint8)
        padded[:, : len(query)] = np.clip(np.rint(255 * products), 0, 255)
        parts = padded.reshape(len(products), -1, LANES).transpose(1, 0, 2)
        return np.ascontiguousarray(parts)

    def to_bytes(self) -> bytes:
        """The weight (float32), codes (uint16), means, centroids, one after the other."""
        return (
            np.float32(self.weight).astype("<f4").tobytes()
            + self.codes.astype("<u2").tobytes()
            + self.means.tobytes()
            + self.centroids.tobytes()
        )

    @classmethod
    def from_buffer(
        cls, content: memoryview | bytes, dim: int, tokens: int, passages: int
    ) -> Estimates:
        """What `to_bytes` wrote. Raises ValueError for what it cannot have written."""
        width, after_codes = INT8.row_bytes(dim), 4 + 2 * tokens
        start = after_codes + passages * width
        count, rest = divmod(len(content) - start, width)
        if rest or count < 1:
            raise ValueError(f"{len(content)} bytes do not fit {tokens} codes")
        codes = np.frombuffer(content, "<u2", tokens, offset=4)
        if tokens and codes.max() >= count:
            raise ValueError(f"code {codes.max()} of {count} centroids")
        rows = np.frombuffer(content, np.uint8, offset=after_codes).reshape(-1, width)
        weight = float(np.frombuffer(content, "<f4", 1)[0])
        return cls(rows[passages:], codes, rows[:passages], weight)


def estimates(codec: Codec, rows: np.ndarray, bounds: np.ndarray, dim: int) -> Estimates:
    """Those of a segment: `rows` of its codec, passage i being rows bounds[i]:bounds[i + 1]."""
    tokens = len(rows)
    count = min(LANES * max(1, round(8 * tokens**0.5 / LANES)), tokens, MOST)
    chosen = np.random.default_rng(0).choice(tokens, min(tokens, SAMPLE * count), replace=False)
    centroids = learn(_int8(codec, rows[np.sort(chosen)], dim), dim, count)
    codes, means = np.empty(tokens, np.uint16), np.zeros((len(bounds) - 1, dim), np.float32)
    for first, last in blocks(bounds, BLOCK):
        block = slice(bounds[first], bounds[last])
        codes[block] = nearest(_int8(codec, rows[block], dim), centroids)
        left = codec.decode(rows[block], dim) - centroids[codes[block]]
        filled = first + np.flatnonzero(np.diff(bounds[first : last + 1]))
        if len(filled):
            sums = np.add.reduceat(left, bounds[filled] - bounds[first], axis=0)
            means[filled] = sums / (bounds[filled + 1] - bounds[filled])[:, None]
    stored = np.frombuffer(INT8.encode(np.concatenate([means, centroids])), np.uint8)
    stored = stored.reshape(len(means) + count, -1)
    made = Estimates(stored[len(means) :], codes, stored[: len(means)], 0.0)
    return replace(made, weight=_weight(made, codec, rows, bounds, dim))


def _weight(made: Estimates, codec: Codec, rows: np.ndarray, bounds: np.ndarray, dim: int) -> float:
    """The weight of the means that finds most of the best 10, tried on passages as queries."""
    rng = np.random.default_rng(0)
    asking = rng.choice(np.flatnonzero(np.diff(bounds)), TRIALS)
    everything = np.arange(len(bounds) - 1)
    near = max(20, len(everything) // 20)  # among so many estimates
    met = np.zeros(len(WEIGHTS))
    for passage in asking.tolist():
        own = codec.decode(rows[bounds[passage] : bounds[passage + 1]], dim)
        query = own[rng.integers(0, len(own), LANES)]
        exact = codec.scores(query, rows, bounds[:-1], bounds[1:])
        best = np.argsort(-exact)[:10]
        for place, weight in enumerate(WEIGHTS):
            tried = replace(made, weight=weight)
            scores = tried.scores(query, bounds[:-1], bounds[1:], everything)
            met[place] += np.isin(best, np.argsort(-scores)[:near]).sum()
    return WEIGHTS[int(met.argmax())]


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
