"""The figures of `bench retrieval` are of what they say: every row there, the exact ten found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps import bench_retrieval
from apps.bench_retrieval import Clustered
from retrieval.scoring import maxsim
from tests import tiny


def test_every_row_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_retrieval, "RERANKED", 20)
    monkeypatch.setattr(bench_retrieval, "COLLECTIONS", (15, 40))
    model = tiny.colbert_folder(tmp_path / "tiny")
    rows = list(bench_retrieval.bench_retrieval(str(model), device="cpu", dtype="fp32"))
    whats = [str(row["what"]) for row in rows]
    assert whats[:3] == ["encode documents", "encode documents", "encode a query"]
    assert whats[3:6] == ["MaxSim, int8", "MaxSim, 4bit", "MaxSim, 2bit"]
    searches = whats[7::2]
    assert whats[6::2] == ["index vectors"] * 2 and len(searches) == 2
    # A collection this small is scored as a whole: only int8's rounding can change a rank.
    assert all(float(what.split()[-1]) >= 0.9 for what in searches)
    assert [row["size"] for row in rows[6:]] == [15, 15, 40, 40]
    for row in rows:
        assert row["ms"] > 0 and row["per_s"] > 0


def test_the_truth_is_exact_maxsim() -> None:
    data = Clustered(30)
    queries = [data.query(number) for number in range(3)]
    packed = np.concatenate([data.document(number) for number in range(30)])
    for query, best in zip(queries, data.best(queries, 5), strict=True):
        scores = maxsim(query, packed, data.bounds)
        assert list(best) == list(np.argsort(-scores, kind="stable")[:5])
    assert np.allclose(np.linalg.norm(packed, axis=1), 1, atol=1e-5)
