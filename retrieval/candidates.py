"""Search as two parts: one proposes passages, the other scores them exactly. Knows no text.

Whatever proposes ids can stand here: estimates of the index's own segments, or another store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lfm2_mm.compiled import register_width
from retrieval.segments import Exact, Segment

EFFORT = 1024  # passages that are scored exactly, or
EFFORT_K = 4  # this many times as many as are asked for
SMALL = 1 << 20  # vectors that are scored faster (some 5 to 10 ms) than worth avoiding
SMALL_IN_NUMPY = 1 << 17  # the same where the loops are not compiled


class Proposer(Protocol):
    """Finds passages that are worth an exact score."""

    def propose(
        self, query: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """About `count` ids, ascending, of `allowed` (ascending; None: all that live)."""
        ...


class Estimated:
    """Proposes by the estimates of segments. What lies in a segment without any is proposed."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments

    def propose(
        self, query: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        always, ids = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        scores = [np.empty(0, dtype=np.float32)]
        for segment in self._segments:
            rows = segment.among(allowed)
            estimated = segment.estimated(query, rows)
            if estimated is None:
                always.append(segment.ids[rows])
            else:
                ids.append(segment.ids[rows])
                scores.append(estimated)
        found, worth = np.concatenate(ids), np.concatenate(scores)
        if count < len(found):
            found = found[np.argpartition(-worth, count)[:count]]
        return np.sort(np.concatenate([*always, found]))


class Candidates:
    """Search as `Exact` offers it, exact in its scores, near exact in what it finds.

    effort: passages that are scored exactly; None: EFFORT, or EFFORT_K times k. A collection, or
    what a filter leaves of it, that is scored as a whole in a moment is, whatever the effort.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        effort: int | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self._segments = segments
        self._effort = effort
        self._proposer = proposer or Estimated(segments)
        self.exact = Exact(segments)

    def candidates(
        self, query: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and exact scores of the k best of `allowed` (ascending; None: all), best first."""
        count = max(k, self._effort or max(EFFORT, EFFORT_K * k))
        if not self._small(count, allowed):
            allowed = self._proposer.propose(query, count, allowed)
        return self.exact.candidates(query, k, allowed)

    def scores(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Exact MaxSim (N,) of `ids` in any order; -inf for one that is not in the index."""
        return self.exact.scores(query, ids)

    def vectors(self, chunk: int) -> np.ndarray:
        """(T, dim) float32 of one passage."""
        return self.exact.vectors(chunk)

    def _small(self, count: int, allowed: np.ndarray | None) -> bool:
        """Whether scoring all is as good as choosing. Filtered passages have the usual length."""
        tokens = sum(segment.entry.tokens for segment in self._segments)
        chunks = sum(segment.entry.chunks for segment in self._segments)
        if allowed is not None:
            tokens = tokens * len(allowed) // max(chunks, 1)
            chunks = len(allowed)
        compiled = register_width() is not None
        return chunks <= count or tokens <= (SMALL if compiled else SMALL_IN_NUMPY)
