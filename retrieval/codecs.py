"""How token vectors lie on the disk, and how they are scored where they lie. Knows no files.

A stored row is all there is: its codec needs no training and no codebook, so rows can be written
as a stream, copied byte for byte, and read one at a time.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Protocol

import numpy as np

from retrieval import kernels
from retrieval.scoring import blocks, maxsim

DEFAULT = "int8"


class Codec(Protocol):
    """How vectors lie on the disk. A row has the same number of bytes whatever it holds."""

    name: str

    def row_bytes(self, dim: int) -> int: ...

    def encode(self, vectors: np.ndarray) -> bytes:
        """(T, dim) float32 -> T rows."""
        ...

    def decode(self, rows: np.ndarray, dim: int) -> np.ndarray:
        """(T, row_bytes) uint8 -> (T, dim) float32."""
        ...

    def scores(
        self, query: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """MaxSim (N,) of (Q, dim) float32 with passages rows[starts[i]:ends[i]] (uint8)."""
        ...


class Float16:
    """Two bytes a dimension. A cosine of unit vectors is off by less than 1e-3."""

    name = "float16"

    def row_bytes(self, dim: int) -> int:
        return 2 * dim

    def encode(self, vectors: np.ndarray) -> bytes:
        return vectors.astype("<f2").tobytes()

    def decode(self, rows: np.ndarray, dim: int) -> np.ndarray:
        halves = rows.view("<f2")
        if "torch" in sys.modules and sys.byteorder == "little":  # three times numpy's conversion
            return sys.modules["torch"].from_numpy(halves.copy()).float().numpy()
        return halves.astype(np.float32)

    def scores(
        self, query: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        return _decoded_scores(self, query, rows, starts, ends)


class Quantised:
    """`bits` a dimension and a float32 scale: a value is scale * (code - middle).

    8 bits: the scale is the row's largest value / 127; dimensions stay what they are.
    4 and 2 bits: the row is turned (`_turn`) so that its values are spread as normal ones, and the
    scale is the step that rounds such values best, then fitted to the row so that its product with
    the row is right (as RaBitQ does: Gao and Long 2024).

    Error of a cosine with a unit vector. 8 bits: at most sqrt(dim) / 254 times the row's largest
    value. 4 and 2 bits: a standard deviation of about 0.11 and 0.36 / sqrt(dim); a row that is
    no mixture of many dimensions can be off by several times that. The compiled scoring rounds the
    query to 8 bits as well, which adds what 8 bits of a row do.
    """

    def __init__(self, name: str, bits: int) -> None:
        self.name = name
        self._bits = bits
        self._levels = 1 << bits
        self._middle = 128.0 if bits == 8 else (self._levels - 1) / 2

    def codes(self, dim: int) -> int:
        """Bytes of a row without its scale; always whole groups of four dimensions a part."""
        return 4 * math.ceil(dim * self._bits / 32)

    def row_bytes(self, dim: int) -> int:
        return self.codes(dim) + 4

    def encode(self, vectors: np.ndarray) -> bytes:
        vectors = vectors.astype(np.float32, copy=False)
        dim = vectors.shape[1]
        if self._bits == 8:
            scale = np.abs(vectors).max(axis=1, initial=0) / 127
            codes = np.rint(vectors / _nonzero(scale)[:, None]) + 128
        else:
            vectors = vectors @ _turn(dim).T
            codes, scale = self._rounded(vectors)
        rows = np.empty((len(vectors), self.row_bytes(dim)), dtype=np.uint8)
        rows[:, :-4] = self._packed(codes.astype(np.uint8))
        rows[:, -4:] = scale.astype("<f4")[:, None].view(np.uint8)
        return rows.tobytes()

    def _rounded(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes, and the scale that makes <row, stored> = <row, row>."""
        spread = np.sqrt(np.square(vectors).mean(axis=1))
        step = _nonzero(spread * STEPS[self._bits])[:, None]
        codes = np.clip(np.floor(vectors / step) + self._levels // 2, 0, self._levels - 1)
        product = (vectors * (codes - self._middle)).sum(axis=1)
        return codes, np.square(vectors).sum(axis=1) / _nonzero(product)

    def _packed(self, codes: np.ndarray) -> np.ndarray:
        """(T, dim) -> (T, codes(dim)): byte j holds dimension j, then j + codes(dim), and so on."""
        width, parts = self.codes(codes.shape[1]), 8 // self._bits
        padded = np.full((len(codes), width * parts), round(self._middle), dtype=np.uint8)
        padded[:, : codes.shape[1]] = codes
        packed = np.zeros((len(codes), width), dtype=np.uint8)
        for part in range(parts):
            packed |= padded[:, part * width : (part + 1) * width] << (part * self._bits)
        return packed

    def decode(self, rows: np.ndarray, dim: int) -> np.ndarray:
        packed, scale = rows[:, :-4], np.ascontiguousarray(rows[:, -4:]).view("<f4")
        parts = [(packed >> shift) & (self._levels - 1) for shift in range(0, 8, self._bits)]
        codes = np.concatenate(parts, axis=1)[:, :dim].astype(np.float32)
        vectors = (codes - np.float32(self._middle)) * scale
        return vectors if self._bits == 8 else vectors @ _turn(dim)

    def scores(
        self, query: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        loops = kernels.loaded(self.codes(query.shape[1]), self._bits)
        if loops is None or not len(query):
            return _decoded_scores(self, query, rows, starts, ends)
        turned = query if self._bits == 8 else query @ _turn(query.shape[1]).T
        return loops.maxsim(loops.panels(turned, self._middle), rows, starts, ends)


# Step of the uniform quantiser that rounds a standard normal value best (Max 1960, table II).
STEPS = {4: 0.3352, 2: 0.9957}

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (Float16(), Quantised("int8", 8), Quantised("4bit", 4), Quantised("2bit", 2))
}


def _decoded_scores(
    codec: Codec, query: np.ndarray, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """MaxSim in float32 over decoded rows, some megabytes at a time."""
    bounds = np.concatenate([[0], np.cumsum(ends - starts)])
    found = [np.empty(0, dtype=np.float32)]
    for first, last in blocks(bounds):
        stored = _gathered(rows, starts[first:last], ends[first:last])
        offsets = bounds[first : last + 1] - bounds[first]
        found.append(maxsim(query, codec.decode(stored, query.shape[1]), offsets))
    return np.concatenate(found)


def _gathered(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Some passages in a piece; without a copy where they follow each other."""
    if (starts[1:] == ends[:-1]).all():
        return rows[starts[0] : ends[-1]]
    return np.concatenate([rows[a:b] for a, b in zip(starts, ends, strict=True)])


@functools.cache
def _turn(dim: int) -> np.ndarray:
    """An orthogonal (dim, dim) that mixes all dimensions, the same for ever: changes of sign, then
    the discrete cosine transform, twice."""
    place = np.arange(dim)
    cosine = np.cos(np.pi * (2 * place[None, :] + 1) * place[:, None] / (2 * dim))
    cosine *= math.sqrt(2 / dim)
    cosine[0] /= math.sqrt(2)
    turn = np.eye(dim)
    for prime in (1_000_003, 7_368_787):
        signs = 1 - 2 * ((place * place * prime // 1024) % 2)
        turn = cosine @ (signs[:, None] * turn)
    return turn.astype(np.float32)


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, 1).astype(np.float32)
