"""Evaluation of BEIR-style folders: the measures by hand, and files as people have them."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from pathlib import Path

import pytest

from lfm2_mm.errors import BadInput
from retrieval import evaluation
from retrieval.evaluation import evaluate, measure
from retrieval.types import MODES
from tests.words_encoder import WordsEncoder

CORPUS = [
    {"_id": "1", "title": "Fox", "text": "The quick brown fox jumps over the lazy dog."},
    {"_id": "2", "title": "", "text": "Money comes back within five days."},
    {"_id": "3", "title": "Only a title", "text": ""},
    {"_id": "4", "title": "Long", "text": "filler " * 100 + "needle"},
    {"_id": 5, "text": "Parcels leave on Mondays."},
]
QUERIES = [
    {"_id": "a", "text": "quick fox"},
    {"_id": "b", "text": "needle"},
    {"_id": "c", "text": "parcels on mondays"},
    {"_id": "unjudged", "text": "money"},
]
QRELS = "query-id\tcorpus-id\tscore\na\t1\t2\na\t2\t0\nb\t4\t1\nc\t5\t1\n"


def lines(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(lines(CORPUS))
    (tmp_path / "queries.jsonl").write_text(lines(QUERIES))
    (tmp_path / "qrels.tsv").write_text(QRELS)
    return tmp_path


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_is_measured_through_a_real_index(folder: Path, mode) -> None:
    told: list[tuple[int, int, str]] = []
    found = evaluate(
        folder, model=WordsEncoder(), mode=mode, progress=lambda *step: told.append(step)
    )
    for name in ("ndcg@10", "recall@100", "mrr@10", "map"):
        assert found[name] == pytest.approx(1), name  # type: ignore[literal-required]
    assert (found["queries"], found["documents"]) == (3, 5)
    assert set(found["seconds"]) == {"encode", "search"}
    assert told[-1] == (3, 3, "searching")


def test_an_index_that_is_kept_is_not_made_again(folder: Path, tmp_path: Path) -> None:
    encoder = WordsEncoder()
    first = evaluate(folder, model=encoder, index=tmp_path / "index")
    encoded = len(encoder.encoded)
    again = evaluate(folder, model=encoder, index=tmp_path / "index")
    assert len(encoder.encoded) == encoded
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_the_measures_are_those_of_the_textbook() -> None:
    qrels = {"a": {"x": 2, "y": 1, "w": 1}, "b": {"z": 1}}
    runs = {"a": ["n1", "x", "n2", "y"], "b": [f"n{i}" for i in range(10)] + ["z"]}
    gain = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    found = measure(qrels, runs)
    assert found["ndcg@10"] == pytest.approx((gain / ideal + 0) / 2)
    assert found["mrr@10"] == pytest.approx((1 / 2 + 0) / 2)  # eleventh does not count
    assert found["recall@100"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["map"] == pytest.approx(((1 / 2 + 2 / 4) / 3 + 1 / 11) / 2)


def test_a_query_for_which_nothing_is_found_counts_as_zero() -> None:
    found = measure({"a": {"x": 1}, "b": {"x": 1}}, {"a": ["x"], "b": []})
    assert found["ndcg@10"] == pytest.approx(0.5)


def test_the_order_found_decides_and_no_order_of_names() -> None:
    for order, expected in (["p", "q"], 1.0), (["q", "p"], 0.5):
        assert measure({"a": {"p": 1}}, {"a": order})["mrr@10"] == expected


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_compressed_files_and_the_qrels_folder(folder: Path, suffix: str) -> None:
    plain = evaluate(folder, model=WordsEncoder())
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    (folder / "qrels").mkdir()
    for old, new in [
        ("corpus.jsonl", "corpus.jsonl"), ("queries.jsonl", "queries.jsonl"),
        ("qrels.tsv", "qrels/test.tsv"),
    ]:  # fmt: skip
        data = (folder / old).read_bytes()
        (folder / old).unlink()
        (folder / f"{new}{suffix}").write_bytes(pack(data))
    packed = evaluate(folder, model=WordsEncoder())
    assert {**packed, "seconds": 0} == {**plain, "seconds": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "corpus.jsonl",
            '{"_id": "1", "text": "a"}\n{broken\n',
            r"corpus\.jsonl, line 2: not JSON",
        ),
        ("corpus.jsonl", '\n["a"]\n', r"corpus\.jsonl, line 2: expected an object"),
        ("corpus.jsonl", '{"text": "a"}\n', "line 1: '_id' must be a text"),
        ("corpus.jsonl", '{"_id": "1"}\n', "line 1: 'text' must be a text"),
        ("corpus.jsonl", '{"_id": "1", "text": 3}\n', "line 1: 'text' must be a text"),
        ("corpus.jsonl", '{"_id":"1","text":"a"}\n' * 2, "line 2: a second document"),
        ("corpus.jsonl", "", "no document"),
        ("corpus.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("corpus.jsonl", f'{{"_id": "1", "text": "{"a" * 999}"}}', "line 1: longer than"),
        ("qrels.tsv", "a\t1\t1\n" + "x" * 1000, r"qrels\.tsv, line 2: longer than"),
        ("queries.jsonl", '{"_id": "z", "text": "a"}\n', "no query"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\na\t1\n", r"qrels\.tsv, line 2: expected"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\na\t1\thigh\n", r"qrels\.tsv, line 2: expected"),
        ("qrels.tsv", f"query-id\tcorpus-id\tscore\na\t1\t{9**30}\n", "line 2: .* below 1,000,000"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\n", "no judgement"),
    ],
)
def test_malformed_files_are_told_with_their_line(
    folder, name, content, message, monkeypatch
) -> None:
    if "longer" in message:
        monkeypatch.setattr(evaluation, "LONGEST", 900)
    (folder / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        evaluate(folder, model=WordsEncoder(), mode="lexical")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_what_is_missing_or_not_text_is_told(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        evaluate(folder, model=WordsEncoder())
    (folder / name).unlink()
    with pytest.raises(BadInput, match=f"lacks {name}".replace(".", r"\.")):
        evaluate(folder, model=WordsEncoder())
    (folder / f"{name}.gz").write_bytes(b"not gzip")
    with pytest.raises(BadInput, match="cannot read"):
        evaluate(folder, model=WordsEncoder())
