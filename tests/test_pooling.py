"""Token pooling: how many vectors are left, and which."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import retrieval.pooling
from lfm2_mm.errors import BadInput
from retrieval.pooling import pool
from retrieval.scoring import maxsim


def unit(tokens: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((tokens, 32)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 10, 11, 200])
@pytest.mark.parametrize("factor", [1, 2, 3, 50])
def test_how_many_are_left_and_that_they_are_unit_vectors(tokens: int, factor: int) -> None:
    vectors = unit(tokens)
    pooled = pool(vectors, factor)
    wanted = tokens if tokens < 3 else 1 + -(-(tokens - 1) // factor)
    assert pooled.shape == (wanted, 32)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(pooled[:1], vectors[:1])
    if factor == 1:
        np.testing.assert_array_equal(pooled, vectors)


def test_repetitions_go_first_and_cost_nothing() -> None:
    words = unit(20)
    passage = np.concatenate([words, words[5:], words[5:]])
    pooled = pool(passage, 2)  # 25 of 50, of which 20 differ
    np.testing.assert_allclose(maxsim(words, [pooled]), maxsim(words, [passage]), atol=1e-4)


def test_each_merge_is_the_cheapest() -> None:
    """Squared distances from the means add up as in an exhaustive choice, step by step."""
    points = unit(9)[:, :4]
    clusters = [[i] for i in range(8)]

    def spread(members: list[int]) -> float:
        chosen = points[1:][members]
        return float(np.square(chosen - chosen.mean(axis=0)).sum())

    for _ in range(4):
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a + 1, len(clusters))]
        a, b = min(pairs, key=lambda p: spread(clusters[p[0]] + clusters[p[1]])
                   - spread(clusters[p[0]]) - spread(clusters[p[1]]))  # fmt: skip
        clusters[a] += clusters.pop(b)
    means = np.array([points[1:][members].mean(axis=0) for members in clusters])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(pool(points, 2)[1:], means, atol=1e-5)


@pytest.mark.parametrize("factor", [0, -1])
def test_a_factor_below_one_is_refused(factor: int) -> None:
    with pytest.raises(BadInput, match="1 .none. or more"):
        pool(unit(3), factor)


def test_doctests() -> None:
    failed, tried = doctest.testmod(retrieval.pooling)
    assert tried and not failed
