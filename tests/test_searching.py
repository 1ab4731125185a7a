"""Searches over indexes of awkward sizes, by date, and over pooled vectors."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import retrieval
from lfm2_mm.errors import BadInput
from retrieval import storage
from retrieval.filters import Where
from retrieval.scoring import maxsim
from retrieval.types import MODES
from tests.indexes import mixed, opened
from tests.words_encoder import WordsEncoder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return mixed(tmp_path)


@pytest.mark.parametrize("lengths", [[1], [1, 1, 2], [*range(1, 513, 7), 512], [512] * 3])
def test_rankings_are_those_of_exact_maxsim(tmp_path: Path, lengths: list[int]) -> None:
    """Documents of 1 to 512 tokens, under every filter, against float32 without any index."""
    encoder = WordsEncoder(dim=48, document_length=512)
    chance = np.random.default_rng(5)
    texts = {
        f"d{n}": " ".join(f"w{i}" for i in chance.integers(0, 90, length - 1)) or "."
        for n, length in enumerate(lengths)
    }
    with retrieval.open(tmp_path / "index", model=encoder, create=True, codec="float16") as index:
        index.add_texts(((s, t, "") for s, t in texts.items()), meta={"all": "yes"})
        for query in ("w1", "w2 w3 w4 w5 w6 w7 w8"):
            vectors = encoder.encode_queries([query])[0]
            wanted = maxsim(vectors, encoder.encode_documents(list(texts.values())))
            exact = dict(zip(texts, wanted.tolist(), strict=True))
            found = index.search(query, 9999, "colbert")
            assert {h.source for h in found} == set(texts)
            assert len(found) == len(texts)
            for hit in found:  # float16 is off by at most 2^-11 a query token
                assert hit.score == pytest.approx(exact[hit.source], abs=len(vectors) * 2**-11)
            one = index.search(query, 9, "colbert", {"source": "d0", "all": "yes"})
            assert [h.source for h in one] == ["d0"]
            for mode in MODES:
                assert index.search(query, 9, mode, {"source": "none*"}) == []
                assert index.search(query, 9, mode, {"date": "2020"}) == []  # texts have no date


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"date": "2024"}, {"b", "c"}),
        ({"date": "2024-02"}, {"c"}),
        ({"date": "2024-02-29"}, {"c"}),
        ({"date>=": "2024"}, {"b", "c", "d"}),
        ({"date>": "2024"}, {"d"}),
        ({"date<": "2024-02-29"}, {"a", "b"}),
        ({"date<=": "2024-02-29"}, {"a", "b", "c"}),
        ({"date>=": "2024", "date<": "2025"}, {"b", "c"}),
        ([("date", "2024"), ("source", "b*")], {"b"}),
        ({"year>=": "9"}, {"b", "c"}),
        ({"year<": "100"}, {"a"}),
        ({"team>": "m"}, {"c"}),
        ([("team>", "a"), ("team<", "m")], {"b"}),
    ],
)
def test_dates_and_comparisons(tmp_path: Path, where: Where, expected: set[str]) -> None:
    days = {"a": "2023-12-31", "b": "2024-01-01", "c": "2024-02-29", "d": "2025-06-01"}
    meta = {
        "a": {"year": "8"},
        "b": {"year": "100", "team": "hr"},
        "c": {"year": "2000", "team": "sales"},
    }
    with opened(tmp_path / "index") as index:
        for name, day in days.items():
            path = tmp_path / f"{name}.txt"
            path.write_text(f"zebra {name}")
            moment = datetime.fromisoformat(f"{day}T12:00").timestamp()
            os.utime(path, (moment, moment))
            index.update(path, meta=meta.get(name, {}))
        for mode in MODES:
            found = {Path(hit.source).stem for hit in index.search("zebra", 9, mode, where)}
            assert found == expected, mode
        for bad, told in (({"date": "soon"}, "2024-05-31"), ({"page": "x"}, "whole number")):
            with pytest.raises(BadInput, match=told):
                index.search("zebra", where=bad)


def test_pooled_vectors_are_fewer_and_still_tell_which_words_matched(tmp_path: Path) -> None:
    tokens = {}
    for factor in (1, 2):
        folder = tmp_path / str(factor)
        with retrieval.open(folder, model=WordsEncoder(), create=True, pool=factor) as index:
            index.add_texts([("a", "quick brown fox and lazy dog", ""), ("b", "red panda", "")])
            tokens[factor] = index.info().tokens
            (hit,) = index.search("lazy fox", 1, "colbert")
            assert (hit.source, {m.word for m in hit.matches}) == ("a", {"lazy", "fox"})
            assert index.check() == []
    assert tokens == {1: 7 + 3, 2: 4 + 2}
    with pytest.raises(BadInput, match="pool 2, not 1"):
        retrieval.open(tmp_path / "2", pool=1)


def test_recall_is_measured_and_a_target_found(made: Path) -> None:
    with opened(made) as index:
        found = index.recall(3)
        assert (found.k, found.value, found.queries) == (3, 1.0, 4)
        assert index.recall(3, ["quick fox"], target=0.98).reached
        index.set_effort(2000)
        assert storage.load(made).effort == 2000
        assert index.check() == []
        for odd in (
            lambda: index.recall(0),
            lambda: index.recall(target=2),
            lambda: index.set_effort(0),
        ):
            with pytest.raises(BadInput):
                odd()
