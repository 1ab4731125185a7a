"""Compiled scoring: MaxSim over stored codes, nearest centroids. Knows arrays and no files.

kernel_ir.py holds the loops; LLVM (the llvmlite wheel) compiles them for this processor when they
are first needed, in a tenth of a second, so there is nothing to cache and no compiler to install.
Where that cannot be, `loaded` is None and callers compute the same in numpy.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lfm2_mm.compiled import Loop, features, register_width
from lfm2_mm.device import usable_cores
from retrieval import kernel_ir
from retrieval.kernel_ir import LANES, Shape

SHARE = 20_000  # rows that are worth a thread of their own
LIGHT = 16  # rows of `interaction` that take as long as one of MaxSim


@dataclass(frozen=True)
class Panels:
    """Vectors as the loops take them, 32 in a panel; the last is filled up with zeros."""

    codes: np.ndarray  # (P, dims / 4, LANES, 4) int8
    offsets: np.ndarray  # (P, LANES) float32: to add to a sum over unsigned codes
    weights: np.ndarray  # (P, LANES) float32: what a unit of a code stands for


def panels(vectors: np.ndarray, shape: Shape, offset: float) -> Panels:
    """(Q, dim) float32 vectors in signed bytes with a scale each.

    offset: the code of a stored zero. A zero vector stays zero; a lane that only fills up too.
    """
    count = -(-max(len(vectors), 1) // LANES)
    padded = np.zeros((count * LANES, shape.dims), dtype=np.float32)
    padded[: len(vectors), : vectors.shape[1]] = vectors
    weights = np.abs(padded).max(axis=1) / 127
    scaled = padded / np.where(weights > 0, weights, 1)[:, None]
    codes = np.rint(scaled).astype(np.int8)
    offsets = -offset * codes.sum(axis=1, dtype=np.float32)
    laid = codes.reshape(count, LANES, shape.dims // 4, 4).transpose(0, 2, 1, 3)
    return Panels(
        np.ascontiguousarray(laid),
        offsets.reshape(count, LANES),
        weights.astype(np.float32).reshape(count, LANES),
    )


class Kernels:
    """The loops for rows of one shape, compiled."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    @functools.cached_property
    def _maxsim(self) -> Loop:
        return Loop("maxsim", kernel_ir.maxsim(self._shape), "pppllpppp")

    @functools.cached_property
    def _nearest(self) -> Loop:
        return Loop("nearest", kernel_ir.nearest(self._shape), "pllppplp")

    def panels(self, vectors: np.ndarray, offset: float) -> Panels:
        return panels(vectors, self._shape, offset)

    @functools.cached_property
    def _table(self) -> Loop:
        return Loop("table", kernel_ir.table(self._shape), "pllpppp")

    def maxsim(
        self, query: Panels, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """Scores (N,) of documents that are rows starts[i]:ends[i]; -inf for one without rows."""
        starts, ends = _int64(starts), _int64(ends)
        self._check_rows(rows, starts, ends)
        parts = np.empty((len(query.codes), len(starts)), dtype=np.float32)

        def run(first: int, last: int) -> None:
            for panel in zip(query.codes, query.offsets, query.weights, parts, strict=True):
                self._maxsim(rows, starts, ends, first, last, *panel)

        _shared(run, ends - starts)
        return np.asarray(parts.sum(axis=0))

    def nearest(self, centroids: Panels, rows: np.ndarray) -> np.ndarray:
        """For each row the number (int32) of the lane of all panels with the largest product."""
        self._check_rows(rows, np.array([0]), np.array([len(rows)]))
        out = np.empty(len(rows), dtype=np.int32)

        def run(first: int, last: int) -> None:
            self._nearest(
                rows, first, last, centroids.codes, centroids.offsets, centroids.weights,
                len(centroids.codes), out,
            )  # fmt: skip

        _shared(run, np.full(len(rows), len(centroids.codes)))
        return out

    def table(self, query: Panels, rows: np.ndarray) -> np.ndarray:
        """(P, T, LANES) uint8: the product of each row with each lane, 0 to 1 in 255ths."""
        self._check_rows(rows, np.array([0]), np.array([len(rows)]))
        out = np.empty((len(query.codes), len(rows), LANES), dtype=np.uint8)

        def run(first: int, last: int) -> None:
            for panel in zip(query.codes, query.offsets, query.weights, out, strict=True):
                self._table(rows, first, last, *panel)

        _shared(run, np.ones(len(rows), dtype=np.int64))
        return out

    @functools.cached_property
    def _products(self) -> Loop:
        return Loop("products", kernel_ir.products_alone(self._shape), "pllpppp")

    def products(self, vector: Panels, rows: np.ndarray) -> np.ndarray:
        """(T,) float32: the product of each row with the first lane."""
        self._check_rows(rows, np.array([0]), np.array([len(rows)]))
        out = np.empty(len(rows), dtype=np.float32)
        panel = (vector.codes[0], vector.offsets[0], vector.weights[0])

        def run(first: int, last: int) -> None:
            self._products(rows, first, last, *panel, out)

        _shared(run, np.ones(len(rows), dtype=np.int64))
        return out

    def _check_rows(self, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        fits = rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == self._shape.row
        if not (fits and rows.flags.c_contiguous):
            raise ValueError(f"rows of {self._shape.row} bytes are wanted; got {rows.shape}")
        _check_places(starts, ends, len(rows))


def _check_places(starts: np.ndarray, ends: np.ndarray, count: int) -> None:
    """Compiled code reads wherever it is told to: what it is told to read has to be there."""
    if len(starts) != len(ends) or (len(starts) and (starts.min() < 0 or ends.max() > count)):
        raise ValueError(f"passages reach beyond the {count} rows that there are")


@functools.cache
def loaded(codes: int, bits: int) -> Kernels | None:
    """The loops for rows of `codes` bytes of codes; None where this processor has no instruction
    for them, or llvmlite is not installed."""
    width = register_width()
    return None if width is None else Kernels(Shape(codes, bits, wide=width == 64))


def interaction(
    table: np.ndarray, codes: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """(N,) sums over lanes of the maxima of table (K, LANES) uint8 at codes (T,) uint16.

    Document i has the codes starts[i]:ends[i], at least one.
    """
    loop = _interaction()
    if loop is None:
        return _interaction_in_numpy(table, codes, starts, ends)
    if table.shape[1:] != (LANES,) or table.dtype != np.uint8 or codes.dtype != np.uint16:
        raise ValueError(f"a table (K, {LANES}) of bytes and codes of two bytes are wanted")
    table, codes = np.ascontiguousarray(table), np.ascontiguousarray(codes)
    starts, ends = _int64(starts), _int64(ends)
    _check_places(starts, ends, len(codes))
    out = np.empty(len(starts), dtype=np.float32)

    def run(first: int, last: int) -> None:
        loop(codes, starts, ends, first, last, table, out)

    _shared(run, (ends - starts) // LIGHT)
    return out


def _interaction_in_numpy(
    table: np.ndarray, codes: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    out = np.empty(len(starts), dtype=np.float32)
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        out[place] = table[codes[start:end]].max(axis=0).sum(dtype=np.int64)
    return out


@functools.cache
def _interaction() -> Loop | None:
    if not features():
        return None
    return Loop("interaction", kernel_ir.interaction(), "pppllpp")


def _shared(run: Callable[[int, int], None], work: np.ndarray) -> None:
    """run(first, last) over all of `work` (rows of each piece), in threads of like shares."""
    done = np.cumsum(work)
    total = int(done[-1]) if len(done) else 0
    shares = min(usable_cores(), 1 + total // SHARE)
    inner = np.searchsorted(done, total * np.arange(1, shares) / shares)
    runs = list(itertools.pairwise([0, *inner.tolist(), len(work)]))
    others = [threading.Thread(target=run, args=part) for part in runs[1:]]
    for thread in others:
        thread.start()
    run(*runs[0])
    for thread in others:
        thread.join()


def _int64(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, dtype=np.int64)
