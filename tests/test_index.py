"""The index over real files: life cycle, search, filters, snapshots, kills and interruptions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import retrieval
from lfm2_mm.errors import BadInput, IndexBusy, IndexDamaged, IndexMismatch, LfmError
from retrieval import storage
from retrieval.fusion import Fusion
from retrieval.index import Index
from retrieval.scoring import maxsim
from retrieval.types import MODES
from tests.words_encoder import WordsEncoder

NOTES = {
    "refunds.md": "# Refunds\n\nMoney comes back in five days.\n\n## Shipping\n\nParcels leave.",
    "fox.txt": "The quick brown fox jumps over the lazy dog.",
    "names.py": "def get_user_name(user):\n    return parseHTTPHeader(user)\n",
    "sub/tokyo.txt": "東京都に住んでいます。LFM2を使う。",
}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    for name, text in NOTES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def encoder() -> WordsEncoder:
    return WordsEncoder()


@pytest.fixture
def index(tmp_path: Path, encoder: WordsEncoder) -> Index:
    return retrieval.open(tmp_path / "index", model=encoder, create=True)


def names(hits: list[retrieval.Hit]) -> list[str]:
    return [Path(hit.source).name for hit in hits]


def rankings(index: Index) -> list[tuple[str, int, float]]:
    """All that a search says but for ids, which depend on the order of runs."""
    found = []
    for mode in MODES:
        for query in ("money back", "quick fox", "user name", "東京"):
            hits = index.search(query, 20, mode)
            found.append([(hit.source, hit.start, round(hit.score, 4)) for hit in hits])
    return [sorted(ranking) for ranking in found]


@pytest.mark.parametrize(
    ("query", "mode", "expected"),
    [
        ("money back", "hybrid", "refunds.md"),
        ("money back", "colbert", "refunds.md"),
        ("parcel monday", "lexical", "refunds.md"),
        ("LAZY dog", "hybrid", "fox.txt"),
        ("dogs jumping", "lexical", "fox.txt"),
        ("parse header", "hybrid", "names.py"),
        ("東京", "lexical", "tokyo.txt"),
        ("lfm2", "lexical", "tokyo.txt"),
    ],
)
def test_a_person_finds_what_she_expects(index, notes, query, mode, expected) -> None:
    report = index.update(notes)
    assert (report.documents, report.added, report.skipped) == (4, 4, ())
    hits = index.search(query, 3, mode)
    assert names(hits)[0] == expected
    assert [hit.rank for hit in hits] == [1, 2, 3][: len(hits)]


def test_hits_point_into_the_source_and_tell_why(index, notes) -> None:
    index.update(notes)
    hit = index.search("money back", 1)[0]
    text = (notes / "refunds.md").read_text()
    assert text[hit.start : hit.end] == hit.text
    assert {(m.token, m.word, hit.text[m.start : m.end]) for m in hit.matches} == {
        ("money", "Money", "Money"), ("back", "back", "back"),
    }  # fmt: skip
    assert all(m.score == pytest.approx(1, abs=1e-3) for m in hit.matches)
    assert index.text(hit.document)[hit.start : hit.end] == hit.text
    lexical = index.search("get_user_name users", 1, "lexical")[0]
    assert {lexical.text[m.start : m.end] for m in lexical.matches} == {"get", "user", "name"}


def test_an_unchanged_file_is_not_opened_and_a_changed_one_alone_is_encoded(
    index, notes, encoder, monkeypatch
) -> None:
    index.update(notes)
    before = list(encoder.encoded)
    for path in notes.rglob("*.*"):
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))  # touched, same content
    touched = index.update(notes)
    assert (touched.unchanged, touched.updated, encoder.encoded) == (4, 0, before)
    monkeypatch.setattr("retrieval.update.open_regular", None)  # reading anything would now fail
    monkeypatch.setattr("retrieval.update.read", None)
    assert index.update(notes).unchanged == 4
    monkeypatch.undo()
    (notes / "fox.txt").write_text("A slow red panda.")
    report = index.update(notes)
    assert (report.updated, report.unchanged, report.added) == (1, 3, 0)
    assert encoder.encoded[len(before) :] == ["fox\nA slow red panda."]
    assert "fox.txt" not in names(index.search("quick brown", 9, "lexical"))
    assert names(index.search("panda", 1)) == ["fox.txt"]
    assert index.check() == []


def test_vanished_files_go_only_where_pruning_was_asked_for_and_below_the_paths(
    index, notes, tmp_path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("zebra")
    index.update([notes, other])
    (notes / "fox.txt").unlink()
    other.unlink()
    assert index.update(notes).removed == 0
    assert names(index.search("fox", 1, "lexical")) == ["fox.txt"]
    report = index.update(notes, prune=True)
    assert (report.removed, report.documents) == (1, 4)
    assert index.search("fox", 1, "lexical") == []
    assert names(index.search("zebra", 1, "lexical")) == ["other.txt"]
    shutil.rmtree(notes)
    notes.mkdir()
    assert index.update(notes, prune=True).documents == 1
    assert index.check() == []


def test_an_unreadable_file_is_told_remembered_and_tried_again_when_it_changes(
    index, notes, monkeypatch
) -> None:
    bad = notes / "bad.pdf"
    bad.write_bytes(b"%PDF-1.7 no more than a promise")
    first = index.update(notes)
    assert [Path(s.path).name for s in first.skipped] == ["bad.pdf"]
    monkeypatch.setattr("retrieval.update.read", None)
    assert index.update(notes).skipped == first.skipped
    monkeypatch.undo()
    bad.rename(notes / "bad.txt")
    (notes / "bad.txt").write_text("now readable")
    assert index.update(notes).added == 1


def test_what_was_indexed_stays_when_its_file_becomes_unreadable(index, notes) -> None:
    index.update(notes)
    (notes / "fox.txt").write_bytes(b"")
    report = index.update(notes)
    assert "empty" in report.skipped[0].why
    assert "kept" in report.skipped[0].why
    assert names(index.search("fox", 1, "lexical")) == ["fox.txt"]


def test_nothing_to_index_is_an_error_that_creates_nothing(index, tmp_path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(BadInput, match="void"):
        index.update(tmp_path / "void")
    with pytest.raises(BadInput, match="missing"):
        index.update(tmp_path / "missing")
    assert not (tmp_path / "index").exists()
    (tmp_path / "void" / "empty.txt").touch()
    with pytest.raises(BadInput, match="empty"):
        index.update(tmp_path / "void")
    assert index.check() == []


def test_deleting_by_source_name_and_pattern(index, notes) -> None:
    index.update(notes)
    assert index.delete("fox.txt").removed == 1
    assert index.delete((notes / "names.py").as_posix()).documents == 2
    assert index.delete("*.md").documents == 1
    with pytest.raises(BadInput, match=r"no document 'fox\.txt'"):
        index.delete("fox.txt")
    assert names(index.search("fox money user 東京", 9)) == ["tokyo.txt"]
    assert index.delete("*").documents == 0
    assert index.search("anything") == []
    assert index.check() == []
    assert not list((index.folder / "segments").iterdir())


def test_an_empty_index_answers_nothing_and_is_sound(index, tmp_path) -> None:
    assert index.search("anything", where={"team": "x"}) == []
    with pytest.raises(BadInput):
        index.delete("*")
    (tmp_path / "fresh").mkdir()
    fresh = retrieval.open(tmp_path / "fresh")
    assert (fresh.check(), fresh.search("x"), fresh.sources()) == ([], [], [])
    assert fresh.info().model is None


def test_filters_hold_before_scoring_in_every_mode(index, notes) -> None:
    index.update(notes / "fox.txt", meta={"team": "zoo", "year": "2020"})
    index.update(notes)
    allowed = [
        ({"source": "*.md"}, {"refunds.md"}),
        ({"source": "*/sub/*"}, {"tokyo.txt"}),
        ({"type": "text"}, {"fox.txt", "tokyo.txt"}),
        ({"type": "py"}, {"names.py"}),
        ({"team": "zoo"}, {"fox.txt"}),
        ({"team": "zoo", "year": "2021"}, set()),
        ({"source": "*.txt", "team": "zoo"}, {"fox.txt"}),
        ({"source": "' OR 1=1 --"}, set()),
    ]
    for where, expected in allowed:
        for mode in ("hybrid", "colbert"):
            assert set(names(index.search("money", 50, mode, where))) == expected
        words = "money fox user 東京"
        assert set(names(index.search(words, 50, "lexical", where))) == expected
    with pytest.raises(BadInput, match=r"'color'.*source, type, title, page, date, team, year"):
        index.search("money", where={"color": "red"})


def test_metadata_is_replaced_without_encoding(index, notes, encoder) -> None:
    index.update(notes, meta={"team": "a", "kept": "yes"})
    encoded = len(encoder.encoded)
    index.update(notes, meta={"team": "b"})
    assert len(encoder.encoded) == encoded
    assert {tuple(s.meta.items()) for s in index.sources()} == {(("kept", "yes"), ("team", "b"))}
    with pytest.raises(BadInput, match="'type'"):
        index.update(notes, meta={"type": "x"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"query": " \n"}, "empty"),
        ({"query": "x", "k": 0}, "1 or more"),
        ({"query": "x", "mode": "psychic"}, "hybrid, colbert, lexical"),
    ],
)
def test_bad_questions_are_refused(index, values, message) -> None:
    with pytest.raises(BadInput, match=message):
        index.search(**values)


def test_given_texts_are_added_updated_and_kept(index, encoder) -> None:
    texts = [("a", "one two", "Title"), ("b", "", "only a title"), ("c", "", ""), ("a", "x", "")]
    report = index.add_texts(texts)
    assert report.added == 2
    assert [(s.path, s.why) for s in report.skipped] == [
        ("c", "no text in it"), ("a", "a document of this name was given before in this run"),
    ]  # fmt: skip
    assert index.add_texts([("a", "one two", "Title")]).unchanged == 1
    assert index.add_texts([("a", "one three", "Title"), ("d", "\ud800", "")]).updated == 1
    assert index.search("two", 9, "lexical") == []
    assert index.search("title three", 1)[0].source == "a"


def test_search_equals_exact_maxsim_over_everything(tmp_path, encoder) -> None:
    index = retrieval.open(tmp_path / "index", model=encoder, create=True, codec="float16")
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(60)]
    texts = {f"d{n}": " ".join(rng.choice(words, rng.integers(1, 24))) for n in range(300)}
    index.add_texts((name, text, "") for name, text in texts.items())
    for query in ("w1", "w2 w3 w4", " ".join(words[:15])):
        vectors = encoder.encode_queries([query])[0]
        exact = dict(
            zip(texts, maxsim(vectors, encoder.encode_documents(list(texts.values()))), strict=True)
        )
        hits = index.search(query, 400, "colbert")
        assert len(hits) == 300
        # products of float16-rounded unit vectors: 2^-11 a query token
        for hit in hits:
            assert hit.score == pytest.approx(exact[hit.source], abs=len(vectors) * 2**-11)
        assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
        ranked = index.rank(query, 100, "colbert")
        assert ranked == [(hit.source, hit.score) for hit in hits[:100]]


def test_hybrid_holds_the_scores_of_both_for_every_candidate(index) -> None:
    index.add_texts((f"d{n}", f"common word{n} " + "pad " * (n % 7), "") for n in range(500))
    only_words = index.search("common word77", 5, "hybrid", fusion=Fusion(weight=0))
    lexical = index.search("common word77", 5, "lexical")
    assert only_words[0].id == lexical[0].id
    only_meaning = index.search("common word77", 5, "hybrid", fusion=Fusion(weight=1))
    colbert = index.search("common word77", 5, "colbert")
    assert [hit.id for hit in only_meaning] == [hit.id for hit in colbert]
    assert len(index.search("common word77", 450)) == 450


def test_documents_are_ranked_by_their_best_passage(index) -> None:
    index.add_texts([("long", "filler " * 200 + "needle", ""), ("short", "needle and thread", "")])
    assert index.info().chunks > 5
    for mode in MODES:
        ranked = index.rank("needle filler", 2, mode)
        assert sorted(source for source, _ in ranked) == ["long", "short"]


def test_another_model_is_refused_by_name(index, notes, tmp_path) -> None:
    index.update(notes)
    other = WordsEncoder("other")
    with pytest.raises(IndexMismatch, match=r"words.*other.*new folder"):
        retrieval.open(tmp_path / "index", model=other)
    lexical = retrieval.open(tmp_path / "index")  # no model is asked, and lexical needs none
    assert names(lexical.search("fox", 1, "lexical")) == ["fox.txt"]


def test_an_index_made_by_another_model_meanwhile_is_refused(notes, tmp_path) -> None:
    early = retrieval.open(tmp_path / "index", model=WordsEncoder("other"), create=True)
    retrieval.open(tmp_path / "index", model=WordsEncoder(), create=True).update(notes)
    with pytest.raises(IndexMismatch):
        early.update(notes)
    with pytest.raises(IndexMismatch):
        early.search("fox")


def test_a_second_writer_is_busy_and_readers_go_on(index, notes, tmp_path) -> None:
    index.update(notes)
    with storage.writing(index.folder):
        with pytest.raises(IndexBusy):
            retrieval.open(index.folder, model=WordsEncoder()).update(notes)
        assert names(index.search("fox", 1, "lexical")) == ["fox.txt"]


def test_readers_see_whole_states_while_a_writer_works(index, encoder) -> None:
    """Every state has ten documents of one number; a reader must never see two numbers."""

    def state(number: int) -> list[tuple[str, str, str]]:
        return [(f"d{n}", f"always number{number}", "") for n in range(10)]

    index.add_texts(state(0))
    failures: list[object] = []
    done = threading.Event()

    def read() -> None:
        reader = retrieval.open(index.folder, model=WordsEncoder())
        while not done.is_set():
            for mode in MODES:
                texts = {hit.text for hit in reader.search("always", 50, mode)}
                if len(texts) != 1:
                    failures.append(texts)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 15):
        index.add_texts(state(number))
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert index.check() == []
    assert index.info().documents == 10


class Interrupting(WordsEncoder):
    """Raises KeyboardInterrupt, as Ctrl-C does, when it is asked for the `calls`-th batch."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def encode_documents(self, texts, progress=None):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return super().encode_documents(texts, progress)


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_ctrl_c_keeps_what_was_finished_and_the_next_run_encodes_the_rest(tmp_path, calls) -> None:
    texts = [(f"d{n}", f"word{n} " * 40, "") for n in range(120)]
    whole = retrieval.open(tmp_path / "whole", model=WordsEncoder(), create=True)
    whole.add_texts(texts)
    first, second = Interrupting(calls), WordsEncoder()
    with pytest.raises(KeyboardInterrupt):
        retrieval.open(tmp_path / "index", model=first, create=True).add_texts(texts)
    index = retrieval.open(tmp_path / "index", model=second)
    assert index.check() == []
    kept = index.info().documents
    assert (kept > 0) == (calls > 1)
    report = index.add_texts(texts)
    assert (report.added, report.unchanged) == (120 - kept, kept)
    assert len(set(first.encoded)) <= len(set(first.encoded + second.encoded))
    assert index.rank("word5 word77", 120) == whole.rank("word5 word77", 120)


KILLED = """
import os, sys
from pathlib import Path
import retrieval
from retrieval import catalog, segments, storage, writer
from tests.words_encoder import WordsEncoder

left = int(sys.argv[2])
def dying(call):
    def step(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os._exit(9)  # as kill -9: nothing is flushed, closed or undone
        return call(*args, **kwargs)
    return step

for home, name in [(segments, "flush"), (catalog.Catalog, "_insert"), (storage, "flush"),
                   (os, "replace"), (catalog.Catalog, "purge"), (writer, "sweep")]:
    setattr(home, name, dying(getattr(home, name)))
index = retrieval.open(sys.argv[1], model=WordsEncoder(), create=True)
index.add_texts([("old", "quick brown fox", ""), ("new", "lazy dog", "")])
index.delete("new")
"""


def test_killed_at_every_step_the_index_is_the_old_or_the_new_one(tmp_path) -> None:
    """Each call that makes something durable, and each step of a commit, is the last one once."""
    start = retrieval.open(tmp_path / "start", model=WordsEncoder(), create=True)
    start.add_texts([("old", "money comes back", ""), ("gone", "user name", "")])
    start.close()
    states, code = set(), 9
    for step in range(1, 100):
        folder = tmp_path / f"killed{step}"
        shutil.copytree(tmp_path / "start", folder)
        code = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(step)],
            cwd=Path(__file__).parent.parent, check=False,
        ).returncode  # fmt: skip
        with retrieval.open(folder, model=WordsEncoder()) as index:
            states.add(whole_state(index))
            index.add_texts([("old", "quick brown fox", ""), ("third", "panda", "")])
            assert {"old", "gone", "third"} <= {source for source, _ in whole_state(index)}
        if code != 9:
            break
    old = (("gone", "user name"), ("old", "money comes back"))
    new = (("gone", "user name"), ("new", "lazy dog"), ("old", "quick brown fox"))
    assert states == {old, new, (new[0], new[2])}
    assert (code, step) >= (0, 12)


def whole_state(index: Index) -> tuple[tuple[str, str], ...]:
    """(source, text) of the documents, which every part of a sound index must agree on."""
    assert index.check() == []
    found = {s.source: index.text(s.document) for s in index.sources()}
    for mode in MODES:
        hits = index.search("money quick lazy panda user", 9, mode)
        assert {(hit.source, hit.text) for hit in hits} == set(found.items()), mode
    return tuple(sorted(found.items()))


def test_a_full_disk_is_told_and_what_was_published_stays(index, notes, monkeypatch) -> None:
    index.update(notes)
    before = rankings(index)

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval.segments.flush", full)
    with pytest.raises(LfmError, match=r"No space left.*stays"):
        index.add_texts([("more", "text", "")])
    monkeypatch.undo()
    assert rankings(index) == before
    assert index.check() == []


@pytest.mark.parametrize("file", ["manifest.json", "catalog.sqlite", "segments/000001.vectors"])
def test_damage_is_named_by_check(index, notes, file) -> None:
    index.update(notes)
    index.close()
    path = index.folder / file
    whole = path.read_bytes()
    place = 10 if file == "catalog.sqlite" else len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
    assert {d.file for d in retrieval.open(index.folder).check()} == {file}
    path.unlink()
    assert file in [d.file for d in retrieval.open(index.folder).check()]
    with pytest.raises(IndexDamaged):
        retrieval.open(index.folder, model=WordsEncoder()).search("fox")


def test_a_catalog_of_another_state_is_noticed(index, notes, tmp_path) -> None:
    index.update(notes)
    index.close()
    shutil.copy(index.folder / "catalog.sqlite", tmp_path / "older")
    index.delete("fox.txt")
    index.close()
    shutil.copy(tmp_path / "older", index.folder / "catalog.sqlite")
    assert {d.file for d in index.check()} == {"catalog.sqlite"}
    with pytest.raises(IndexDamaged, match="repair"):
        index.search("fox", mode="lexical")


def test_lexical_search_and_opening_import_no_torch(index, notes) -> None:
    index.update(notes)
    code = (
        "import sys, retrieval; i = retrieval.open(sys.argv[1]); "
        "assert i.search('quick fox', mode='lexical')[0].matches; i.info(); i.check(); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(index.folder)], check=True)
