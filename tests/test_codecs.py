"""Every codec's rows: their size, their error, and scores that are those of the stored vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrieval import codecs, kernels
from retrieval.codecs import CODECS
from retrieval.scoring import maxsim

DIMS = [16, 48, 64, 96, 128, 30]
# Standard deviation of a cosine's error, times sqrt(dim): theory for normal values, and a tenth.
SPREAD = {"float16": 0.003, "int8": 0.01, "4bit": 0.118, "2bit": 0.39}


def unit(rng: np.random.Generator, tokens: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((tokens, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(name: str, vectors: np.ndarray) -> np.ndarray:
    width = CODECS[name].row_bytes(vectors.shape[1])
    return np.frombuffer(CODECS[name].encode(vectors), np.uint8).reshape(-1, width)


def test_bytes_a_token_at_128_dimensions() -> None:
    sizes = {name: codec.row_bytes(128) for name, codec in CODECS.items()}
    assert sizes == {"float16": 256, "int8": 132, "4bit": 68, "2bit": 36}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dim", DIMS)
def test_a_cosine_is_off_by_no_more_than_is_told(name: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors, asked = unit(rng, 2000, dim), unit(rng, 200, dim)
    error = (CODECS[name].decode(stored(name, vectors), dim) - vectors) @ asked.T
    assert error.std() <= SPREAD[name] / math.sqrt(dim)
    assert abs(error.mean()) <= 0.05 * SPREAD[name] / math.sqrt(dim)
    if name == "int8":
        assert np.abs(error).max() <= math.sqrt(dim) / 254 * np.abs(vectors).max() + 1e-6


@pytest.mark.parametrize("name", CODECS)
def test_one_hot_constant_tiny_and_zero_rows(name: str) -> None:
    hot = np.eye(64, dtype=np.float32)
    rows = np.concatenate([hot, -hot, np.full((1, 64), 0.125, np.float32), 1e-4 * hot[:1]])
    decoded = CODECS[name].decode(stored(name, rows), 64)
    lengths = np.linalg.norm(rows, axis=1)
    bound = {"float16": 1e-3, "int8": 1e-2, "4bit": 0.3, "2bit": 0.7}[name]
    assert (np.linalg.norm(decoded - rows, axis=1) <= bound * lengths + 1e-7).all()
    own = (decoded * rows).sum(axis=1)  # a row's product with itself is kept by every codec
    np.testing.assert_allclose(own, lengths**2, rtol=2e-2)
    assert not CODECS[name].decode(stored(name, np.zeros((3, 64), np.float32)), 64).any()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("lengths", [[1], [0], [3, 0, 7], [512, 1, 180], []])
def test_scores_are_those_of_the_stored_vectors(name: str, dim: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(dim)
    bounds = np.cumsum([0, *lengths])
    rows = stored(name, unit(rng, bounds[-1], dim))
    for asked in (1, 32, 40):
        query = unit(rng, asked, dim)
        found = CODECS[name].scores(query, rows, bounds[:-1], bounds[1:])
        exact = maxsim(query, CODECS[name].decode(rows, dim), bounds)
        # The query is rounded to 8 bits: half a step in each dimension, at the very most.
        step = np.abs(query).max(axis=1).sum() / 127
        np.testing.assert_allclose(found, exact, atol=step / 2 * math.sqrt(dim) * 1.5 + 1e-4)
        np.testing.assert_allclose(found, exact, atol=0.02 * math.sqrt(asked))
        assert found.dtype == np.float32


@pytest.mark.parametrize("name", CODECS)
def test_without_compiled_loops_scores_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows, query = stored(name, unit(rng, 60, 32)), unit(rng, 32, 32)
    starts, ends = np.array([50, 0, 0, 7]), np.array([60, 0, 7, 50])
    compiled = CODECS[name].scores(query, rows, starts, ends)
    monkeypatch.setattr(kernels, "loaded", lambda codes, bits: None)
    plain = CODECS[name].scores(query, rows, starts, ends)
    assert plain[1] == compiled[1] == -np.inf
    np.testing.assert_allclose(compiled, plain, atol=0.06)


@pytest.mark.parametrize("dim", DIMS)
def test_the_turn_keeps_products(dim: int) -> None:
    turn = codecs._turn(dim)
    np.testing.assert_allclose(turn @ turn.T, np.eye(dim), atol=2e-6)
    assert np.abs(turn).max() < 0.9  # no dimension is left to itself


def test_the_turn_of_today_is_that_of_yesterday() -> None:
    """What was stored with it must be read with it."""
    first = codecs._turn(16)[0, :3]
    np.testing.assert_allclose(first, [0.25614, 0.43516, -0.04182], atol=1e-5)
