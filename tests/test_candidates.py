"""Search over segments: equal to exact float32 MaxSim where it says so, near it elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2_mm.errors import IndexDamaged
from retrieval import candidates, segments
from retrieval.candidates import Candidates
from retrieval.codecs import CODECS
from retrieval.scoring import maxsim
from retrieval.segments import Exact, Segment, SegmentWriter, verify

DIM = 32
# A score is a sum over 32 tokens of the query; each is off by what the codec's rounding moves the
# best of many cosines, in standard deviations of test_codecs (float16 by its conversion alone).
TOLERANCE = {"float16": 0.02, "int8": 0.1, "4bit": 1.2, "2bit": 4.5}


def unit(tokens: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((tokens, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def topical(passages: int, per_topic: int = 6) -> list[np.ndarray]:
    """Passages whose vectors share a topic: one a multiple of `per_topic` apart share none."""
    words, topics = unit(200, 0), unit(passages // per_topic + 1, 1)
    found = []
    for passage in range(passages):
        rng = np.random.default_rng(passage)
        chosen = words[rng.integers(0, 200, rng.integers(1, 60))]
        noise = 0.1 * rng.standard_normal((len(chosen), DIM))
        rows = 0.75 * chosen + 0.45 * topics[passage // per_topic] + noise
        found.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return found


def written(
    folder: Path, passages: list[np.ndarray], codec: str = "int8", size: int = 10_000
) -> list[Segment]:
    """Passages with the ids 1, 2, 3 and so on, `size` in a segment."""
    found = []
    for number, first in enumerate(range(0, len(passages), size), 1):
        writer = SegmentWriter(folder, number, DIM, CODECS[codec])
        for place, vectors in enumerate(passages[first : first + size], first + 1):
            writer.add(place, vectors)
        found.append(Segment(folder, writer.finish(), DIM))
    return found


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments have estimates, and small indexes use them."""
    monkeypatch.setattr(segments, "LEAST", 1)
    monkeypatch.setattr(candidates, "SMALL", 0)
    monkeypatch.setattr(candidates, "SMALL_IN_NUMPY", 0)


LENGTHS = {
    "nothing": [],
    "one token": [1],
    "no tokens": [0],
    "from 1 to 512": [1, 2, 3, 511, 512, 0, 100, 4, 5, 1],
    "many": [int(n) for n in np.random.default_rng(0).integers(1, 40, 300)],
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", LENGTHS)
def test_scores_are_exact_maxsim_within_the_codecs_error(
    codec: str, name: str, tmp_path: Path
) -> None:
    passages = [unit(tokens, seed) for seed, tokens in enumerate(LENGTHS[name], 10)]
    query = unit(32, 5)
    exact = maxsim(query, passages)
    found = Candidates(written(tmp_path, passages, codec, size=7))
    ids, scores = found.candidates(query, 1000)
    assert sorted(ids) == list(range(1, len(passages) + 1))
    np.testing.assert_allclose(scores, exact[ids - 1], atol=TOLERANCE[codec])
    assert (np.diff(scores) <= 0).all() or not np.isfinite(scores).all()
    np.testing.assert_allclose(found.scores(query, ids), scores, atol=1e-4)


def test_float16_ranks_as_float32(tmp_path: Path) -> None:
    passages = topical(200)
    found = Candidates(written(tmp_path, passages, "float16"))
    for seed in range(5):
        query = unit(32, seed)
        exact = np.argsort(-maxsim(query, passages), kind="stable")[:10] + 1
        assert found.candidates(query, 10)[0].tolist() == exact.tolist()


@pytest.mark.parametrize("allowed", [[], [3], [999], [1, 5, 9, 200]])
@pytest.mark.usefixtures("estimated")
def test_only_what_is_allowed_is_found(allowed: list[int], tmp_path: Path) -> None:
    found = Candidates(written(tmp_path, topical(200), size=50), effort=2)
    ids, _ = found.candidates(unit(32, 5), 10, np.array(allowed, dtype=np.int64))
    assert set(ids) <= set(allowed) & set(range(1, 201))
    assert len(ids) == min(10, len(set(allowed) & set(range(1, 201))))


@pytest.mark.usefixtures("estimated")
def test_the_dead_are_never_proposed(tmp_path: Path) -> None:
    passages = topical(120)
    (whole,) = written(tmp_path, passages)
    query = passages[40][:32]
    best = Candidates([whole], effort=10).candidates(query, 10)[0]
    dead = [(int(chunk), int(chunk) + 1) for chunk in best]
    rest = Segment(tmp_path, replace(whole.entry, dead=()).without(dead), DIM)
    ids, _ = Candidates([rest], effort=110).candidates(query, 120)
    assert sorted(ids) == sorted(set(range(1, 121)) - set(best.tolist()))


@pytest.mark.usefixtures("estimated")
def test_enough_effort_is_exact_and_little_is_near(tmp_path: Path) -> None:
    passages = topical(600)
    opened = written(tmp_path, passages, size=250)
    everything = Exact(opened)
    met = []
    for seed in range(20):
        source = passages[seed * 29]
        query = source[np.random.default_rng(seed).integers(0, len(source), 32)]
        ids, scores = everything.candidates(query, 10)
        all_ids, all_scores = Candidates(opened, effort=599).candidates(query, 10)
        assert all_ids.tolist() == ids.tolist()
        assert all_scores.tolist() == scores.tolist()
        near, near_scores = Candidates(opened, effort=60).candidates(query, 10)
        assert (
            dict(zip(near, near_scores, strict=True)).items()
            <= dict(zip(*everything.candidates(query, 600), strict=True)).items()
        )
        met.append(len(set(near) & set(ids)) / 10)
    assert np.mean(met) >= 0.9


@pytest.mark.usefixtures("estimated")
def test_segments_with_and_without_estimates_are_one_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = topical(300)
    opened = written(tmp_path, passages[:200], size=100)
    monkeypatch.setattr(segments, "LEAST", 1 << 30)
    writer = SegmentWriter(tmp_path, 9, DIM, CODECS["int8"])
    for chunk, vectors in enumerate(passages[200:], 201):
        writer.add(chunk, vectors)
    opened.append(Segment(tmp_path, writer.finish(), DIM))
    assert [segment.estimated(unit(3, 3), np.array([0])) is None for segment in opened] == [
        False, False, True,
    ]  # fmt: skip
    query = passages[250][:32]
    assert Candidates(opened, effort=30).candidates(query, 1)[0].tolist() == [251]


def test_a_small_collection_is_scored_as_a_whole(tmp_path: Path) -> None:
    opened = written(tmp_path, topical(200))

    class Never:
        def propose(self, *_: object) -> np.ndarray:
            raise AssertionError("nothing had to be proposed")

    Candidates(opened, effort=1, proposer=Never()).candidates(unit(3, 3), 1)


@pytest.mark.usefixtures("estimated")
def test_damaged_estimates_are_named_and_never_used(tmp_path: Path) -> None:
    (segment,) = written(tmp_path, topical(50))
    path = tmp_path / "segments" / "000001.estimates"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [damage.file for damage in verify(tmp_path, segment.entry)] == [
        "segments/000001.estimates"
    ]
    with pytest.raises(IndexDamaged, match=r"000001\.estimates"):
        Candidates([Segment(tmp_path, segment.entry, DIM)], effort=5).candidates(unit(3, 3), 1)
