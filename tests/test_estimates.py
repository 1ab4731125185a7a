"""Centroids, codes and estimates: that they are what they are said to be, compiled or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval import kernels
from retrieval.codecs import CODECS
from retrieval.estimates import Estimates, estimates, learn, nearest

DIM = 32


def unit(rng: np.random.Generator, tokens: int, dim: int = DIM) -> np.ndarray:
    rows = rng.standard_normal((tokens, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(vectors: np.ndarray, codec: str = "int8") -> np.ndarray:
    encoded = CODECS[codec].encode(vectors)
    return np.frombuffer(encoded, np.uint8).reshape(len(vectors), -1)


@pytest.fixture(params=["compiled", "numpy"])
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "loaded", lambda codes, bits: None)
        monkeypatch.setattr(kernels, "_interaction", lambda: None)


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("count", [1, 32, 45])
def test_nearest_is_nearest(count: int) -> None:
    rng = np.random.default_rng(count)
    vectors, centroids = unit(rng, 500), unit(rng, count)
    products = vectors @ centroids.T
    found = nearest(stored(vectors), centroids)
    assert found.max() < count  # also where every product is below zero
    chosen = np.take_along_axis(products, found[:, None].astype(int), axis=1)[:, 0]
    np.testing.assert_allclose(chosen, products.max(axis=1), atol=0.01)  # both rounded to 8 bits
    assert (nearest(stored(-centroids[:1]), centroids[:1]) == 0).all()


@pytest.mark.usefixtures("_both")
def test_clusters_far_apart_are_found() -> None:
    rng = np.random.default_rng(1)
    true = unit(rng, 40)
    owner = np.repeat(np.arange(40), 50)
    vectors = true[owner] + 0.02 * rng.standard_normal((2000, DIM)).astype(np.float32)
    found = learn(stored(vectors), DIM, 80)
    assert ((true @ found.T).max(axis=1) > 0.98).mean() >= 0.9


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("asked", [1, 32, 50])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_an_estimate_is_the_centroids_maxsim_and_the_mean(
    codec: str, asked: int, weight: float
) -> None:
    rng = np.random.default_rng(asked)
    lengths = [0, 1, 300, 0, 512, 7, 90]
    bounds = np.cumsum([0, *lengths])
    vectors = unit(rng, bounds[-1])
    made = replace(estimates(CODECS[codec], stored(vectors, codec), bounds, DIM), weight=weight)
    query = unit(rng, asked)
    rows = np.array([1, 2, 3, 6])
    found = made.scores(query, bounds[rows], bounds[rows + 1], rows)
    kept = CODECS[codec].decode(stored(vectors, codec), DIM)
    for row, estimate in zip(rows, found, strict=True):
        of = slice(bounds[row], bounds[row + 1])
        if not lengths[row]:
            assert estimate == -np.inf
            continue
        centroids = CODECS["int8"].decode(made.centroids, DIM)[made.codes[of]]
        products = np.maximum(centroids @ query.T, 0).max(axis=0).sum()
        mean = (kept[of] - centroids).mean(axis=0) @ query.sum(axis=0)
        # For each token of the query half a byte's step, and what 8 bits of it and the means lose.
        assert estimate == pytest.approx(products + weight * mean, abs=asked * (0.5 / 255 + 4e-3))


def test_bytes_come_back_and_wrong_ones_are_refused() -> None:
    rng = np.random.default_rng(0)
    bounds = np.array([0, 30, 100])
    made = estimates(CODECS["int8"], stored(unit(rng, 100)), bounds, DIM)
    content = made.to_bytes()
    again = Estimates.from_buffer(content, DIM, 100, 2)
    np.testing.assert_array_equal(again.codes, made.codes)
    np.testing.assert_array_equal(again.means, made.means)
    np.testing.assert_array_equal(again.centroids, made.centroids)
    assert again.weight == made.weight
    for wrong in (b"", content[:-1], content[: -made.centroids.size]):
        with pytest.raises(ValueError):
            Estimates.from_buffer(wrong, DIM, 100, 2)
    wild = content.replace(made.codes.tobytes(), made.codes.tobytes()[:-2] + b"\xff\xff")
    with pytest.raises(ValueError, match="65535"):
        Estimates.from_buffer(wild, DIM, 100, 2)


def test_the_same_vectors_give_the_same_estimates() -> None:
    rows, bounds = stored(unit(np.random.default_rng(3), 400)), np.array([0, 400])
    first, second = (estimates(CODECS["int8"], rows, bounds, DIM).to_bytes() for _ in range(2))
    assert first == second
