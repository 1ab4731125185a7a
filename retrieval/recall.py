"""How much of the exact ranking a search finds, and how fast: measured on the user's own index."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrieval.candidates import EFFORT, Candidates
from retrieval.ranking import View

QUERIES = 50  # passages of which a part is asked for
WORDS = (4, 12)  # of such a part, at least and at most
TIE = 1e-4  # scores this near to the k-th are as good as it: sums of float32 in another order


@dataclass(frozen=True)
class Recall:
    """The share of the k best by exact MaxSim over the stored vectors that search finds."""

    k: int
    value: float  # 0 to 1, the mean over the queries
    queries: int
    effort: int | None  # passages scored exactly; None: as many as search takes by itself
    search_ms: float  # median of a query, its encoding not counted
    exact_ms: float
    target: float | None = None  # that was asked for
    reached: bool = True


def phrases(texts: Sequence[str], seed: int = 0) -> Iterator[str]:
    """A few words in a row of each text, as somebody would who looks for it."""
    chance = random.Random(seed)  # noqa: S311  (repeatable, no secret)
    for text in texts:
        words = text.split()
        count = min(len(words), chance.randint(*WORDS))
        first = chance.randint(0, len(words) - count)
        yield " ".join(words[first : first + count])


def measure(view: View, queries: Sequence[np.ndarray], k: int) -> Recall:
    """Recall of searches as they are, over query vectors (tokens, dim)."""
    exact, exact_s = timed(_scores(view.vectors.exact.candidates), queries, k)
    return _measured(view.vectors, queries, k, exact, exact_s, view.manifest.effort)


def reach(view: View, queries: Sequence[np.ndarray], k: int, target: float) -> Recall:
    """The least effort, by doubling, whose recall is `target`; what is set already where it is."""
    exact, exact_s = timed(_scores(view.vectors.exact.candidates), queries, k)
    effort = view.manifest.effort
    while True:
        scorer = Candidates(view.segments, effort)
        found = _measured(scorer, queries, k, exact, exact_s, effort)
        reached = found.value >= target
        if reached or (effort or 0) >= view.manifest.chunks:
            return replace(found, target=target, reached=reached)
        effort = 2 * (effort or EFFORT)


Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Scores = Callable[[np.ndarray, int], np.ndarray]


def _scores(search: Search) -> Scores:
    return lambda query, k: search(query, k)[1]


def _measured(
    scorer: Candidates, queries: Sequence[np.ndarray], k: int, exact: Sequence[np.ndarray],
    exact_s: float, effort: int | None,
) -> Recall:  # fmt: skip
    found, search_s = timed(_scores(scorer.candidates), queries, k)
    shares = [share(f, e) for f, e in zip(found, exact, strict=True)]
    value = float(np.mean(shares)) if shares else 1.0
    return Recall(k, value, len(queries), effort, 1000 * search_s, 1000 * exact_s)


def timed(search: Scores, queries: Sequence[np.ndarray], k: int) -> tuple[list[np.ndarray], float]:
    """Scores of the k best of each query, and the median seconds of one."""
    scores, seconds = [], [0.0]
    for query in queries:
        started = time.perf_counter()
        scores.append(search(query, k))
        seconds.append(time.perf_counter() - started)
    return scores, statistics.median(seconds[1:] or seconds)


def share(found: np.ndarray, exact: np.ndarray) -> float:
    """How many of the exact best were found; one that scores as the last of them is as good."""
    if not len(exact):
        return 1.0
    return min(1.0, float((found >= exact[-1] - TIE).sum()) / len(exact))
