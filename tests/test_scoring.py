"""MaxSim: both paths against the definition, over awkward sizes."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import retrieval.scoring
from lfm2_mm.errors import BadInput
from retrieval.scoring import BLOCK_TOKENS, blocks, maxsim

# Sums of up to 64 products of unit vectors in float32, not added in the definition's order.
TOLERANCE = 1e-4


def unit(rng: np.random.Generator, tokens: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((tokens, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_definition(query: np.ndarray, document: np.ndarray) -> float:
    if not len(query):
        return 0.0
    if not len(document):
        return -np.inf
    return sum(max(float(q @ d) for d in document) for q in query)


LENGTHS = [[1], [0], [3, 1, 7], [0, 5, 0, 0, 2, 0], [512, 1, 180], [], [BLOCK_TOKENS + 3, 2]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("query_tokens", [0, 1, 5])
def test_every_form_equals_the_definition(lengths: list[int], query_tokens: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(len(lengths) + query_tokens)
    query = unit(rng, query_tokens, 8)
    documents = [unit(rng, n, 8) for n in lengths]
    expected = np.array([by_definition(query, d) for d in documents], dtype=np.float32)
    width = max(lengths, default=0)
    padded = np.zeros((len(lengths), width, 8), np.float32)
    mask = np.zeros((len(lengths), width), bool)
    for row, document in enumerate(documents):
        padded[row, : len(document)], mask[row, : len(document)] = document, True
    packed = np.concatenate([np.empty((0, 8), np.float32), *documents])
    offsets = np.cumsum([0, *lengths])
    as_torch = torch.from_numpy
    forms = [
        maxsim(query, documents),
        maxsim(query, packed, offsets),
        maxsim(query, padded, mask=mask),
        maxsim(as_torch(query), [as_torch(d) for d in documents]).numpy(),
        maxsim(as_torch(query), as_torch(packed), offsets).numpy(),
        maxsim(as_torch(query), as_torch(padded), mask=as_torch(mask)).numpy(),
    ]
    for scores in forms:
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


def test_half_precision_documents_are_summed_in_float32() -> None:
    rng = np.random.default_rng(0)
    query, document = unit(rng, 32, 128), unit(rng, 300, 128).astype(np.float16)
    exact = by_definition(query.astype(np.float64), document.astype(np.float64))
    assert maxsim(query, [document])[0] == pytest.approx(exact, abs=TOLERANCE)


def test_gradients_reach_only_the_best_tokens() -> None:
    torch = pytest.importorskip("torch")
    query = torch.eye(2)
    document = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.1]], requires_grad=True)
    maxsim(query, [document]).sum().backward()
    assert document.grad is not None
    assert document.grad.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["query", "document"])
def test_what_cannot_be_ranked_is_refused(bad: float, where: str) -> None:
    query, document = np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32)
    (query if where == "query" else document)[1, 2] = bad
    with pytest.raises(BadInput, match="NaN"):
        maxsim(query, [document])


@pytest.mark.parametrize(
    ("query", "documents", "offsets"),
    [
        ((4,), (3, 4), [0, 3]),
        ((2, 4), (3, 5), [0, 3]),
        ((2, 4), (3, 4), [0, 2]),
        ((2, 4), (3, 4), [0, 2, 1, 3]),
        ((2, 4), (3, 4), None),
    ],
)
def test_shapes_that_do_not_fit_are_refused(query, documents, offsets) -> None:
    with pytest.raises(BadInput):
        maxsim(np.zeros(query, np.float32), np.zeros(documents, np.float32), offsets)


def test_blocks_cover_every_document_once() -> None:
    lengths = np.random.default_rng(1).integers(0, 30, 200)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    runs = list(blocks(bounds, tokens=64))
    assert [first for first, _ in runs] == [0, *(last for _, last in runs[:-1])]
    assert runs[-1][1] == 200
    assert all(bounds[b] - bounds[a] <= 64 or b == a + 1 for a, b in runs)


def test_doctests() -> None:
    failed, tried = doctest.testmod(retrieval.scoring)
    assert tried and not failed
