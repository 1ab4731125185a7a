"""Fewer vectors a passage: those that say nearly the same become one. Knows arrays only."""

from __future__ import annotations

import numpy as np

from lfm2_mm.errors import BadInput


def pool(vectors: np.ndarray, factor: int) -> np.ndarray:
    """(T, dim) unit vectors -> (1 + (T - 1) / factor rounded up, dim), unit length, float32.

    Ward's clustering (1963): the two clusters are merged again and again whose merging adds least
    to the squared distances from the means; a mean then stands for its cluster, in the order of
    first members. The first vector, the passage's marker, stays as it is
    (token pooling: Clavié, Chaffin and Adams 2024). Raises BadInput for a factor below 1.

    >>> pool(np.array([[0., 1.], [1., 0.], [0., 1.], [1., 0.]]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if factor < 1:
        raise BadInput(f"a pooling factor is 1 (none) or more; got {factor}")
    vectors = vectors.astype(np.float32, copy=False)
    if factor == 1 or len(vectors) < 3:
        return vectors
    rest = vectors[1:]
    means = _ward(rest, -(-len(rest) // factor))
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return np.concatenate([vectors[:1], means / np.where(lengths > 0, lengths, 1)])


def _ward(points: np.ndarray, count: int) -> np.ndarray:
    """Means (count, dim) of clusters."""
    means, sizes = points.copy(), np.ones(len(points), dtype=np.float32)
    costs = _costs(means, sizes, means, sizes)
    np.fill_diagonal(costs, np.inf)
    for _ in range(len(points) - count):
        kept, gone = sorted(divmod(int(costs.argmin()), len(points)))
        merged = sizes[kept] + sizes[gone]
        means[kept] += (means[gone] - means[kept]) * (sizes[gone] / merged)
        sizes[kept], sizes[gone] = merged, 0
        costs[gone] = costs[:, gone] = np.inf
        row = _costs(means[kept : kept + 1], sizes[kept : kept + 1], means, sizes)[0]
        row[sizes == 0] = row[kept] = np.inf
        costs[kept] = costs[:, kept] = row
    return means[sizes > 0]


def _costs(a: np.ndarray, of_a: np.ndarray, b: np.ndarray, of_b: np.ndarray) -> np.ndarray:
    """What merging each of `a` with each of `b` adds to the squared distances."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    weights = of_a[:, None] * of_b / (of_a[:, None] + of_b)
    return np.asarray(weights * squares)
