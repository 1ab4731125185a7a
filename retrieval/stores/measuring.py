"""Recall of a store's searches against exact MaxSim with all it holds, in one pass over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from retrieval.recall import QUERIES, Recall, phrases, share, timed
from retrieval.stores.seam import CandidateStore, Passage
from retrieval.stores.where import In

BATCH = 1024  # passages in memory at once

Scores = Callable[[np.ndarray, int], np.ndarray]  # a query, k -> the k best scores


def sample(store: CandidateStore) -> list[str]:
    """Phrases of the first passages of some documents."""
    ids = np.array([heading.id for heading in store.headings()], dtype=np.int64)
    some = np.random.default_rng(0).permutation(np.sort(ids))[:QUERIES]
    texts = {one.id: one.chunk.text for one in store.scan(In("id", tuple(some.tolist())))}
    return list(phrases([texts[one] for one in some.tolist()]))


def measure(
    store: CandidateStore,
    search: Callable[[int | None], Scores],
    exact: Callable[[Sequence[Passage], np.ndarray], np.ndarray],
    queries: Sequence[np.ndarray],
    k: int,
    effort: int | None,
    target: float | None,
) -> Recall:
    """search: for an effort, what searches find; exact: scores of passages for one query.

    target: the least effort, by doubling from what is set, whose recall is that.
    """
    truth, seconds = _all(store, exact, queries, k)
    count = store.count()
    while True:
        found, search_s = timed(search(effort), queries, k)
        value = float(np.mean([share(f, e) for f, e in zip(found, truth, strict=True)] or [1.0]))
        told = Recall(k, value, len(queries), effort, 1000 * search_s, 1000 * seconds)
        if target is None:
            return told
        if value >= target or (effort or 0) >= count:
            return replace(told, target=target, reached=value >= target)
        effort = 2 * (effort or 100)


def _all(
    store: CandidateStore,
    exact: Callable[[Sequence[Passage], np.ndarray], np.ndarray],
    queries: Sequence[np.ndarray],
    k: int,
) -> tuple[list[np.ndarray], float]:
    """The k best scores of each query, and the seconds of one, reading not counted."""
    best = [np.empty(0, np.float32) for _ in queries]
    passages, seconds = store.scan(), 0.0
    while some := list(islice(passages, BATCH)):
        started = time.perf_counter()
        for place, query in enumerate(queries):
            both = np.concatenate([best[place], exact(some, query)])
            best[place] = -np.sort(-both)[:k]
        seconds += time.perf_counter() - started
    return best, seconds / max(1, len(queries))
