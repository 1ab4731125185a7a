"""MaxSim: for each query token its best document token, summed. Knows arrays, no files.

score(query, document) = sum over query tokens of max over document tokens of their dot product
(Khattab and Zaharia 2020, ColBERT, equation 3). Arithmetic is float32 whatever the inputs are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2_mm.errors import BadInput

if TYPE_CHECKING:
    import torch

# Tokens scored at once: their similarities to 32 query tokens stay in a core's second-level cache.
BLOCK_TOKENS = 4096


def maxsim(
    query: np.ndarray | torch.Tensor,
    documents: Any,
    offsets: np.ndarray | Sequence[int] | None = None,
    mask: Any = None,
) -> Any:
    """Scores (N,) float32 of N documents: numpy in, numpy out; torch in, torch out, with gradients.

    query: (Q, D). documents is one of
      a sequence of N arrays (T_i, D);
      packed (sum of T_i, D), where document i is rows offsets[i]:offsets[i+1]; `offsets` (N + 1,);
      padded (N, T, D), where `mask` (N, T) is True at real tokens (without it all are real).

    A document without tokens scores -inf, an empty query 0. NaN, and shapes that do not fit, raise
    BadInput.

    >>> query = np.array([[1., 0.]])
    >>> padded, mask = np.array([[[-1., 0.], [0., 0.]]]), np.array([[True, False]])
    >>> maxsim(query, padded, mask=mask)  # the pad must not win with 0
    array([-1.], dtype=float32)
    >>> maxsim(np.eye(2), [np.eye(2), np.array([[.5, .5]]), np.empty((0, 2))])
    array([  2.,   1., -inf], dtype=float32)
    >>> maxsim(np.eye(2), np.array([[1., 0.], [0., 1.], [.5, .5]]), offsets=[0, 2, 3])
    array([2., 1.], dtype=float32)
    """
    kernel: Callable[..., Any] = _numpy_scores if isinstance(query, np.ndarray) else _torch_scores
    if query.ndim != 2:
        raise BadInput(f"a query has the shape (tokens, dim); got {tuple(query.shape)}")
    if offsets is None:
        packed, bounds = _pack(query, documents, mask)
    else:
        packed, bounds = documents, np.asarray(offsets, dtype=np.int64)
        _check_offsets(bounds, len(packed))
    if packed.ndim != 2 or packed.shape[1] != query.shape[1]:
        raise BadInput(
            f"documents have the shape {tuple(packed.shape)}; "
            f"this query needs (tokens, {query.shape[1]})"
        )
    return kernel(query, packed, bounds)


def blocks(bounds: np.ndarray, tokens: int = BLOCK_TOKENS) -> Iterator[tuple[int, int]]:
    """Runs first:last of documents of at most `tokens` tokens; a longer document is its own run.

    >>> list(blocks(np.array([0, 3, 5, 5, 30, 31]), tokens=6))
    [(0, 3), (3, 4), (4, 5)]
    """
    first, count = 0, len(bounds) - 1
    while first < count:
        last = int(np.searchsorted(bounds, bounds[first] + tokens, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def _numpy_scores(query: np.ndarray, packed: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    transposed = np.ascontiguousarray(query.T, dtype=np.float32)
    scores = np.empty(len(bounds) - 1, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # _finite tells of it
        for first, last in blocks(bounds):
            rows = packed[bounds[first] : bounds[last]].astype(np.float32, copy=False)
            best = _row_maxima(rows @ transposed, bounds[first : last + 1] - bounds[first])
            scores[first:last] = best.sum(axis=1)
    return _finite(scores)


def _row_maxima(similarity: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(N, Q) maxima over each document's rows. reduceat cannot do empty runs: they are -inf."""
    best = np.full((len(bounds) - 1, similarity.shape[1]), -np.inf, dtype=np.float32)
    filled = np.flatnonzero(np.diff(bounds))
    if len(filled):
        best[filled] = np.maximum.reduceat(similarity, bounds[filled], axis=0)
    return best


def _torch_scores(query: torch.Tensor, packed: torch.Tensor, bounds: np.ndarray) -> torch.Tensor:
    import torch

    transposed = query.float().T
    scores = [query.new_empty(0, dtype=torch.float32)]
    for first, last in blocks(bounds):
        rows = packed[int(bounds[first]) : int(bounds[last])].float()
        lengths = torch.as_tensor(np.diff(bounds[first : last + 1]), device=rows.device)
        best = torch.segment_reduce(
            rows @ transposed, "max", lengths=lengths, axis=0, initial=-torch.inf
        )
        scores.append(best.sum(dim=1))
    return _finite(torch.cat(scores))


def _finite(scores: Any) -> Any:
    """Maxima and sums carry NaN on, so one look at the scores finds any in the inputs."""
    if not bool((scores < np.inf).all()):  # -inf is a document without tokens
        raise BadInput(
            "a query or document vector holds NaN or infinity; nothing can be ranked by it"
        )
    return scores


def _pack(query: Any, documents: Any, mask: Any) -> tuple[Any, np.ndarray]:
    """Documents in any accepted form -> packed rows and bounds."""
    if hasattr(documents, "ndim") and documents.ndim == 3:
        return _pack_padded(documents, mask)
    if hasattr(documents, "ndim") or mask is not None:
        raise BadInput("give a sequence of (tokens, dim), packed rows with offsets, or (N, T, D)")
    for document in documents:
        if document.ndim != 2 or document.shape[1] != query.shape[1]:
            raise BadInput(
                f"a document has the shape {tuple(document.shape)}; "
                f"this query needs (tokens, {query.shape[1]})"
            )
    bounds = np.array([0, *itertools.accumulate(len(d) for d in documents)], dtype=np.int64)
    if not len(documents):
        return query[:0], bounds
    if isinstance(query, np.ndarray):
        return np.concatenate(list(documents)), bounds
    import torch

    return torch.cat(list(documents)), bounds


def _pack_padded(documents: Any, mask: Any) -> tuple[Any, np.ndarray]:
    count, width, dim = documents.shape
    flat = documents.reshape(count * width, dim)
    if mask is None:
        return flat, np.arange(count + 1, dtype=np.int64) * width
    if tuple(mask.shape) != (count, width):
        raise BadInput(f"a mask for {(count, width)} documents and tokens; got {tuple(mask.shape)}")
    keep = mask.reshape(-1) != 0
    lengths = np.asarray((mask != 0).sum(1).tolist(), dtype=np.int64)
    return flat[keep], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _check_offsets(bounds: np.ndarray, rows: int) -> None:
    fits = bounds.ndim == 1 and len(bounds) and bounds[0] == 0 and bounds[-1] == rows
    if not fits or (np.diff(bounds) < 0).any():
        raise BadInput(f"offsets must rise from 0 to the number of rows, {rows}; got {bounds}")
