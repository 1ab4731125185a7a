"""Lexical search over real FTS5: what is found, and that nothing a user types can break it."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import retrieval
import retrieval.fusion
import retrieval.lexical
from retrieval.fusion import Fusion, fuse
from retrieval.index import Index
from retrieval.lexical import MOST_TERMS, expression, terms
from retrieval.matches import by_word
from tests.words_encoder import WordsEncoder

TEXTS = {
    "english": "Refunding customers: the Café's naïve policies were running late.",
    "code": "x = read_tensors(self.getUserName, HTTPServer2, a.b_c)",
    "chinese": "我们在东京都和北京市开会。",
    "japanese": "コンピューターで検索する。LFM2モデルを使う",
    "korean": "서울특별시에서 만나요",
    "german": "Die Straße nach Düsseldorf",
    "ligature": "The e\ufb03cient \ufb01nal \uff34\uff25\uff33\uff34",
    "nul": "before\0after",
    "emoji": "party \U0001f389 time",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("lexical") / "index"
    made = retrieval.open(folder, model=WordsEncoder(), create=True)
    made.add_texts((name, text, "") for name, text in TEXTS.items())
    return made


def found(index: Index, query: str) -> set[str]:
    return {hit.source for hit in index.search(query, 50, "lexical")}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("refund", {"english"}),  # stemmed
        ("CAFE", {"english"}),  # case and accents folded
        ("run policy", {"english"}),
        ("read_tensors", {"code"}),
        ("tensor", {"code"}),
        ("getUserName", {"code"}),
        ("user name", {"code"}),  # parts of camelCase
        ("get_user_name", {"code"}),
        ("http", {"code"}),
        ("东京", {"chinese"}),  # within a run without spaces
        ("東京", set()),  # a traditional character is another one
        ("北京市", {"chinese"}),
        ("検索", {"japanese"}),
        ("コンピューター", {"japanese"}),
        ("LFM2", {"japanese"}),  # beside kana, where FTS5 sees one word
        ("서울", {"korean"}),
        ("만나요", {"korean"}),
        ("strasse düsseldorf", {"german"}),
        ("efficient", {"ligature"}),
        ("final test", {"ligature"}),
        ("before", {"nul"}),
        ("after", {"nul"}),
        ("\U0001f389 party", {"emoji"}),
    ],
)
def test_words_are_found_in_their_forms(index: Index, query: str, expected: set[str]) -> None:
    assert found(index, query) == expected


HOSTILE = [
    '"', "''", '"refund', "refund*", "refund AND", "NEAR(refund late, 9)", "NOT refund", "^refund",
    "body: refund", "{title body}: refund", "(refund", "refund)", "refund\0late",
    "refund; DROP TABLE words", "-refund", "+refund", "re\u0301fund \ufeff", "refund \U0001f600",
    "\u202erefund", "refund " * 5000,
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_typed_is_taken_for_an_operator(index: Index, query: str) -> None:
    assert found(index, query) == (
        {"english"} if "refund" in query or "re\u0301" in query else set()
    )


@pytest.mark.parametrize("query", ["!?", "\U0001f389", '"*"', "\0", "()", "___"])
def test_a_query_without_words_finds_nothing(index: Index, query: str) -> None:
    assert found(index, query) == set()


def test_stop_words_count_only_where_nothing_else_is_there(index: Index) -> None:
    assert terms("what were the policies") == ["policies"]
    assert terms("the who") == ["the", "who"]
    assert found(index, "were the") == {"english", "ligature"}
    assert found(index, "the policy") == {"english"}


def test_a_query_of_many_words_is_bounded(index: Index) -> None:
    words = " ".join(f"word{n}" for n in range(10_000)) + " refund"
    assert len(terms(words)) == MOST_TERMS
    assert found(index, words) == set()
    assert found(index, "refund " + words) == {"english"}


def test_every_term_is_accepted_by_fts5_whatever_the_letters() -> None:
    """One query of each kind of letter that Python calls alphanumeric and FTS5 may not."""
    import sqlite3

    table = sqlite3.connect(":memory:")
    retrieval.lexical.create(table)
    letters = [chr(code) for code in range(0x30000) if chr(code).isalnum()]
    for start in range(0, len(letters), 97):
        words = terms(" ".join(letters[start : start + 97]))
        table.execute(
            "SELECT rowid FROM words WHERE words MATCH ?", (expression(words),)
        ).fetchall()


def test_titles_and_headings_are_searched_too(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("# Handbook\n\n## Refunds\n\n" + "Money comes back. " * 20)
    index = retrieval.open(tmp_path / "index", model=WordsEncoder(), create=True)
    index.update(tmp_path / "guide.md")
    hits = index.search("refunds handbook", 50, "lexical")
    assert len(hits) == index.info().chunks > 2  # every passage stands below both


def test_matches_are_the_words_themselves() -> None:
    text = "Running the Cafés of 东京都, readTensors"
    matched = by_word(terms("run café 东京 tensors"), text)
    assert [(m.token, m.word) for m in matched] == [
        ("run", "Running"), ("café", "Cafés"), ("东京", "东京"), ("tensors", "readTensors"),
    ]  # fmt: skip
    assert all(text[m.start : m.end] == m.word and m.score == 1 for m in matched)
    assert by_word([], text) == ()


@pytest.mark.parametrize("method", ["scores", "zscores", "ranks"])
def test_fusion_follows_its_weight(method) -> None:
    semantic = np.array([3.0, 2.0, 1.0, -np.inf])
    lexical = np.array([0.0, 1.0, 5.0, 9.0])
    assert fuse(semantic, lexical, Fusion(method, 1.0)).argmax() == 0
    assert fuse(semantic, lexical, Fusion(method, 0.0)).argmax() == 3
    both = fuse(semantic, lexical, Fusion(method, 0.5))
    assert np.isfinite(both).all() and both.dtype == np.float32
    shuffled = np.array([2, 0, 3, 1])
    again = fuse(semantic[shuffled], lexical[shuffled], Fusion(method, 0.5))
    np.testing.assert_array_equal(again, both[shuffled])


@pytest.mark.parametrize("method", ["scores", "zscores", "ranks"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_fusion_of_nothing_and_of_equals(method, count) -> None:
    fused = fuse(np.full(count, 2.0), np.zeros(count), Fusion(method))
    assert fused.shape == (count,) and np.isfinite(fused).all() and len(set(fused.tolist())) <= 1


@pytest.mark.parametrize("module", [retrieval.lexical, retrieval.fusion])
def test_doctests(module) -> None:
    failed, tried = doctest.testmod(module)
    assert tried and not failed
