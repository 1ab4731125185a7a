"""One published state and one question -> ids and scores, best first. Knows no encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval import lexical
from retrieval.candidates import Candidates
from retrieval.catalog import Catalog
from retrieval.fusion import Fusion, fuse
from retrieval.segments import Segment, best
from retrieval.storage import Manifest
from retrieval.types import Mode

WIDE = 200  # of each of the two rankings that hybrid search joins


@dataclass(frozen=True)
class View:
    """One published state, open for reading."""

    manifest: Manifest
    seen: tuple[int, ...]  # identity of the manifest file it was read from
    segments: tuple[Segment, ...]

    @cached_property
    def vectors(self) -> Candidates:
        """What proposes passages and what scores them."""
        return Candidates(self.segments, self.manifest.effort)


UNSEEN = View(Manifest(), (-1,), ())  # no state was looked at yet


@dataclass(frozen=True)
class Query:
    """What is searched for."""

    text: str
    k: int
    mode: Mode
    where: tuple[tuple[str, str], ...]
    vectors: np.ndarray | None  # (tokens, dim); None in lexical mode
    fusion: Fusion

    @property
    def terms(self) -> list[str]:
        return lexical.terms(self.text)


def ranked(view: View, catalog: Catalog, asked: Query) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the k best passages, best first."""
    now = view.manifest.generation
    if asked.vectors is None:
        return catalog.lexical(asked.terms, asked.k, now, asked.where)
    vectors, scorer = asked.vectors, view.vectors
    allowed = catalog.select(asked.where, now) if asked.where else None
    if asked.mode == "colbert":
        return scorer.candidates(vectors, asked.k, allowed)
    wide = max(WIDE, asked.k)
    ids, semantic = scorer.candidates(vectors, wide, allowed)
    words, counted = catalog.lexical(asked.terms, wide, now, asked.where)
    union = np.union1d(ids, words)
    semantic = _filled(union, ids, semantic, lambda rest: scorer.scores(vectors, rest))
    counted = _filled(union, words, counted, lambda rest: _counted(catalog, asked.terms, rest, now))
    return best(union, fuse(semantic, counted, asked.fusion), asked.k)


def _counted(catalog: Catalog, terms: Sequence[str], ids: np.ndarray, now: int) -> np.ndarray:
    """BM25 (N,) of passages; 0 where none of the terms is in one."""
    found, scores = catalog.lexical(terms, len(ids), now, among=ids)
    return _filled(ids, found, scores, lambda rest: np.zeros(len(rest), np.float32))


def _filled(
    wanted: np.ndarray,
    ids: np.ndarray,
    scores: np.ndarray,
    rest: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Scores of `wanted`: those of `ids` are known, `rest` finds the others."""
    known = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    missing = np.array([chunk for chunk in wanted.tolist() if chunk not in known], dtype=np.int64)
    if len(missing):
        known |= zip(missing.tolist(), rest(missing).tolist(), strict=True)
    return np.array([known[chunk] for chunk in wanted.tolist()], dtype=np.float32)
