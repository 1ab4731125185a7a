"""One ranking out of two: MaxSim and BM25. Pure functions of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lfm2_mm.errors import BadInput

RANK_CONSTANT = 60  # of reciprocal rank fusion (Cormack, Clarke and Buettcher 2009)


@dataclass(frozen=True)
class Fusion:
    """How the two are joined.

    method: "scores", each scaled to 0..1 over the candidates and summed (a convex combination:
    Bruch, Gai and Ingber 2023); "zscores", to mean 0, deviation 1; "ranks", reciprocal ranks.
    weight: share of MaxSim, 0 to 1; BM25 has the rest.
    """

    method: Literal["scores", "zscores", "ranks"] = "scores"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in ("scores", "zscores", "ranks"):
            raise BadInput(f"no fusion {self.method!r}; known: scores, zscores, ranks")
        if not 0 <= self.weight <= 1:
            raise BadInput(f"the fusion's weight is {self.weight}; it must lie in 0 to 1")


# A stronger encoder deserves a larger share. Tuned on collections that no encoder was tested on.
DEFAULT = Fusion()
OF_ENCODER = {"nano-colbert": Fusion()}


def fuse(semantic: np.ndarray, lexical: np.ndarray, fusion: Fusion = DEFAULT) -> np.ndarray:
    """Scores (N,) of candidates by MaxSim (N,) and BM25 (N,; 0 where no word matches).

    A MaxSim of -inf (a passage without vectors) counts as the worst of the candidates.

    >>> fuse(np.array([30., 20., 25.]), np.array([0., 8., 4.]), Fusion(weight=0.75)).tolist()
    [0.75, 0.25, 0.5]
    """
    if not len(semantic):
        return np.empty(0, dtype=np.float32)
    finite = semantic[np.isfinite(semantic)]
    semantic = np.maximum(semantic, finite.min() if len(finite) else 0.0).astype(np.float64)
    scale = {"scores": _unit, "zscores": _standard, "ranks": _reciprocal}[fusion.method]
    # No word in common, 0, is the worst BM25 can be, also where all candidates have some.
    joined = fusion.weight * scale(semantic, None) + (1 - fusion.weight) * scale(lexical, 0.0)
    return joined.astype(np.float32)


def _unit(scores: np.ndarray, floor: float | None) -> np.ndarray:
    low = scores.min() if floor is None else floor
    spread = scores.max() - low
    return (scores - low) / spread if spread > 0 else np.zeros(len(scores))


def _standard(scores: np.ndarray, _: float | None) -> np.ndarray:
    deviation = scores.std()
    return (scores - scores.mean()) / deviation if deviation > 0 else np.zeros(len(scores))


def _reciprocal(scores: np.ndarray, floor: float | None) -> np.ndarray:
    """Equal scores share the best rank among them, so that order of arrival decides nothing."""
    ranks = np.searchsorted(np.sort(-scores), -scores)
    ranked = np.ones(len(scores), bool) if floor is None else scores > floor
    return np.where(ranked, 1 / (RANK_CONSTANT + 1 + ranks), 0.0)
