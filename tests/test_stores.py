"""One suite over every store: our own index, LanceDB, Qdrant's shard engine, Qdrant's client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import retrieval
from lfm2_mm.errors import BadInput, IndexMismatch, LfmError
from retrieval import stores
from retrieval.stores import collection as collections
from retrieval.stores import writing
from retrieval.stores.collection import Collection, open_collection
from retrieval.stores.copying import copy
from retrieval.stores.seam import CandidateStore
from retrieval.stores.where import And, Compare, In, Or
from tests.words_encoder import WordsEncoder

NEEDS = {"index": None, "lancedb": "lancedb", "qdrant": "qdrant_edge", "client": "qdrant_client"}
WORDS = [f"word{n}" for n in range(60)]
Make = Callable[..., Collection]


@pytest.fixture(params=list(NEEDS))
def engine(request: pytest.FixtureRequest) -> str:
    """`client` is Qdrant's client in its local mode: the calls for a server, without one."""
    needs = NEEDS[request.param]
    if needs and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    return str(request.param)


CLIENTS: dict[Path, object] = {}  # a server goes on when one lets go of it


def opened_store(engine: str, place: Path) -> CandidateStore:
    if engine == "client":
        from qdrant_client import QdrantClient

        from retrieval.stores.server import opened

        client = CLIENTS.setdefault(place, QdrantClient(":memory:"))
        assert isinstance(client, QdrantClient)
        store = opened("qdrant:http://local", client, "notes", create=True)
        store.close = lambda: None  # type: ignore[method-assign]
        return store
    return stores.open_store(f"{engine}:{place}", create=True)


@pytest.fixture
def make(engine: str, tmp_path: Path) -> Iterator[Make]:
    """Opens the store, or opens it again."""
    opened: list[Collection] = []

    def make(name: str = "store", **options: object) -> Collection:
        for one in opened:
            one.close()
        store = opened_store(engine, tmp_path / name)
        options = {"model": WordsEncoder(), **options}
        opened.append(open_collection(store, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def texts(count: int = 40, start: int = 0) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(7)
    made = [" ".join(rng.choice(WORDS, 30)) for _ in range(start + count)]
    return [(f"d{n}", made[n], f"title {n}") for n in range(start, start + count)]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(12):
        kind = ("md", "txt", "MD", "tar.txt")[n % 4]
        (folder / f"note{n:02d}.{kind}").write_text(f"# Part {n}\n\nshared word{n} it's {n % 5}")
    return folder


def answers(collection: Collection | retrieval.Index, **where: str) -> list[object]:
    """All that searches say but for ids."""
    return [
        [(h.source, h.start, h.text, h.score, h.matches) for h in found]
        for query in ("word3 word7 word11", "shared it's", "nothing")
        for found in [collection.search(query, 7, "colbert", where)]
    ]


def test_it_answers_as_our_index_does(make: Make, tmp_path: Path) -> None:
    """The same passages, the same exact scores, the same words that matched."""
    with retrieval.open(tmp_path / "ours", model=WordsEncoder(), create=True) as ours:
        expected = ours.add_texts(texts())
        collection = make()
        report = collection.add_texts(texts())
        assert (report.added, report.documents, report.chunks, report.tokens) == (
            40, expected.documents, expected.chunks, expected.tokens,
        )  # fmt: skip
        assert answers(collection) == answers(ours)
        assert collection.rank("word3", 5) == ours.rank("word3", 5, "colbert")
        ids = [
            [hit.id for hit in one.search("word9 word1", 9, "colbert")]
            for one in (collection, ours)
        ]
        assert ids[0] == ids[1]
    assert answers(make()) == answers(make())  # opened again


def test_what_it_proposes_is_scored_exactly_and_good_enough(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where not all is scored: the order is ours, and the recall is measured."""
    collection = make()
    collection.add_texts(texts(120))
    exact = {h.id: h.score for h in collection.search("word3 word7 word11", 999)}
    monkeypatch.setattr(collections, "FEW", 10)
    collection.set_effort(60)
    hits = collection.search("word3 word7 word11", 10, "colbert")
    assert [h.score for h in hits] == [exact[h.id] for h in hits]
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    found = collection.recall(10)
    assert (found.k, found.queries, found.effort) == (10, 50, 60)
    assert found.value > 0.6
    reached = collection.recall(10, target=1.0)
    assert reached.reached and (reached.effort or 0) >= 60
    for odd in (
        lambda: collection.set_effort(0),
        lambda: collection.recall(0),
        lambda: collection.recall(target=2),
    ):
        with pytest.raises(BadInput, match="asked|effort"):
            odd()
    with pytest.raises(BadInput, match="empty"):
        make("other").recall()


def test_conditions_are_checked_before_anything_is_proposed(
    make: Make, notes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same documents as SQLite finds, also where the engine chooses among them."""
    monkeypatch.setattr(collections, "FEW", 1)
    monkeypatch.setattr(collections, "EFFORT", 2)
    monkeypatch.setattr(collections, "EFFORT_K", 1)
    old = notes / "note03.tar.txt"
    for odd in ("odd [1].txt", "odd\n2.txt"):
        (notes / odd).write_text("shared name")
    os.utime(old, (1_600_000_000, 1_600_000_000))
    collection = make()
    with retrieval.open(tmp_path / "ours", model=WordsEncoder(), create=True) as ours:
        for one in (ours, collection):
            one.update(notes, meta={"team": "it's a=b", "year": "2024"})
            one.update(notes / "note01.txt", meta={"year": "2025.5", "odd key.x": "v2"})
            one.add_texts([("given", "shared words", "A title")], meta={"odd key.x": "10"})
        for where in (
            {"source": "note01.txt"}, {"source": str(notes / "note02.MD")}, {"source": "*.md"},
            {"source": "*note0[^1-4]*"}, {"source": "*.tar.txt"}, {"type": "md"},
            {"type": "tar.txt"}, {"type": "text"}, {"title": "A t?tle"}, {"title": "Part 3"},
            {"page>": "1"}, {"date>=": "2024"}, {"date": "2020"}, {"date<": "2020-09-13"},
            {"team": "it's a=b"}, {"team": "none"}, {"year>": "2024"}, {"year<=": "2024"},
            {"odd key.x>": "5"}, {"odd key.x>": "a"}, {"year": "2024", "type": "md"},
            {"source": "odd [1].txt"}, {"source": "odd\n2.txt"}, {"source": "odd\\x0a*"},
            {"source": "*.\udce9"}, {"type": ".MD"}, {"year>": "nan"}, {"year<": "inf"},
        ):  # fmt: skip
            expected = {h.source for h in ours.search("shared", 99, "colbert", where)}
            monkeypatch.setattr(collections, "EFFORT", 99)
            assert {h.source for h in collection.search("shared", 99, "colbert", where)} == expected
            monkeypatch.setattr(collections, "EFFORT", 2)
            few = collection.search("shared", 2, "colbert", where)
            assert len(few) == min(2, len(expected)), where
            assert {h.source for h in few} <= expected
        for one in (ours, collection):
            with pytest.raises(BadInput, match="no document has 'nobody'"):
                one.search("shared", where={"nobody": "1"})
            with pytest.raises(BadInput, match="a page is a whole number"):
                one.search("shared", where={"page": "9" * 20})
            assert one.delete("odd\n2.txt").removed == 1


def test_files_are_brought_up_to_date(make: Make, notes: Path) -> None:
    collection = make()
    assert collection.update(notes).added == 12
    encoder = WordsEncoder()
    collection = make(model=encoder)
    again = collection.update(notes)
    assert (again.unchanged, again.added, encoder.encoded) == (12, 0, [])
    (notes / "note00.md").write_text("zebra")
    (notes / "note01.txt").unlink()
    os.utime(notes / "note02.MD", (1_600_000_000, 1_600_000_000))
    (notes / "bad.pdf").write_bytes(b"no pdf")
    report = collection.update(notes, prune=True, meta={"team": "zoo"})
    assert (report.updated, report.removed, report.unchanged) == (1, 1, 10)
    assert [Path(one.path).name for one in report.skipped] == ["bad.pdf"]
    assert [h.text for h in collection.search("zebra", 1)] == ["zebra"]
    assert all(one.meta == {"team": "zoo"} for one in collection.sources())
    assert collection.check() == []
    info = collection.info()
    assert (info.documents, info.model, info.codec) == (11, "words", "int8")


def test_sources_are_looked_up_some_hundred_at_a_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is written in between, and what was written is then known."""
    monkeypatch.setattr(writing, "AHEAD", 10)
    monkeypatch.setattr(writing, "ENCODE_CHUNKS", 3)
    monkeypatch.setattr(writing, "PUT_CHUNKS", 3)
    collection = make()
    collection.add_texts(texts(20))
    real, asked = collection.store.headings, []

    def headings(where: object = None) -> object:
        asked.append(where)
        return real(where)  # type: ignore[arg-type]

    monkeypatch.setattr(collection.store, "headings", headings)
    changed = [(s, t + " more", x) for s, t, x in texts(30)]
    report = collection.add_texts([*changed, *changed[:1]])
    assert (report.added, report.updated, len(report.skipped)) == (10, 20, 1)
    assert sum(isinstance(where, In) and where.field == "source" for where in asked) == 3
    assert collection.check() == []


def test_what_is_deleted_is_not_found_and_its_ids_never_come_again(make: Make) -> None:
    collection = make()
    collection.add_texts(texts(8))
    last = max(h.id for h in collection.search("word1", 99))
    assert collection.delete("d7").removed == 1
    assert collection.delete("d[0-4]").removed == 5
    assert {one.source for one in collection.sources()} == {"d5", "d6"}
    assert {h.source for h in collection.search("word1", 99)} == {"d5", "d6"}
    with pytest.raises(BadInput, match="no document 'd7'"):
        collection.delete("d7")
    with pytest.raises(BadInput, match="empty source"):
        collection.delete("")
    collection.add_texts([("new", "word1", "")])
    assert {h.id for h in collection.search("word1", 99) if h.source == "new"} == {last + 1}
    collection.compact()
    assert collection.check() == []
    assert collection.info().documents == 3


@pytest.mark.parametrize("kept", [{"codec": "2bit"}, {"codec": "float16", "pool": 2}])
def test_rows_of_every_codec_and_pooled_ones_go_through(
    make: Make, tmp_path: Path, kept: dict[str, object]
) -> None:
    collection = make(**kept)
    collection.add_texts(texts(9))
    with retrieval.open(tmp_path / "ours", model=WordsEncoder(), create=True, **kept) as ours:  # type: ignore[arg-type]
        ours.add_texts(texts(9))
        assert answers(collection) == answers(ours)


def test_other_models_settings_and_modes_are_refused(make: Make) -> None:
    collection = make()
    assert collection.search("word1") == [] == collection.sources() == collection.check()
    collection.add_texts(texts(2))
    with pytest.raises(IndexMismatch, match="words"):
        make(model=WordsEncoder("others"))
    with pytest.raises(BadInput, match="was made with codec int8"):
        make(codec="4bit")
    for mode in ("hybrid", "lexical"):
        with pytest.raises(BadInput, match="index folder"):
            make().search("word1", mode=mode)


def test_a_tree_of_conditions(make: Make) -> None:
    collection = make()
    collection.add_texts(texts(6))
    count = collection.store.count
    few = In("source", ("d1", "d2", "d2"))
    assert (count(), count(few), count(In("source", ()))) == (12, 4, 0)
    assert count(And((few, Compare("id", ">", 3)))) == 3
    assert count(Or((few, In("source", ("d5", "it's"))))) == 6
    assert [one.id for one in collection.store.scan(few)] == [3, 4, 5, 6]
    assert sorted(one.id for one in collection.store.fetch([9, 2, 999])) == [2, 9]


# ---- killed, damaged, held by another ---------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from retrieval.stores import writing
from retrieval.stores.collection import open_collection
from tests.test_stores import opened_store, texts
from tests.words_encoder import WordsEncoder

writing.ENCODE_CHUNKS = writing.PUT_CHUNKS = 10
store = opened_store(sys.argv[1], Path(sys.argv[2]))
collection = open_collection(store, model=WordsEncoder())
collection.add_texts(texts(20))
real, calls = store.put_head, []

def put_head(head):
    calls.append(head)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(head)

store.put_head = put_head
collection.add_texts([(s, t + " more", x) for s, t, x in texts(40)])
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
@pytest.mark.parametrize("moment", [2, 3])
def test_a_killed_writer_loses_nothing_that_was_there(
    engine: str, make: Make, tmp_path: Path, moment: int
) -> None:
    """Killed between the write and its end, and between two writes."""
    if engine in ("index", "client"):
        pytest.skip("an index is killed in test_crash.py, a client writes nothing here")
    command = [sys.executable, "-c", KILLED, engine, str(tmp_path / "store"), str(moment)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    collection = make()
    held = {one.source for one in collection.sources()}
    assert held >= {f"d{n}" for n in range(20)}
    whole = [(s, t + " more", x) for s, t, x in texts(40)]
    report = collection.add_texts(whole)
    assert report.documents == 40
    assert collection.check() == []
    ids = [h.id for h in collection.search("word1", 999)]
    assert len(ids) == len(set(ids)) == report.chunks
    assert {h.text for h in collection.search("more", 40)} >= {"more"} or report.chunks >= 80


def test_a_flipped_byte_is_noticed(engine: str, make: Make) -> None:
    if engine == "index":
        pytest.skip("test_index.py flips every file's bytes")
    from dataclasses import replace

    collection = make()
    collection.add_texts(texts(3))
    (one,) = collection.store.fetch([1])
    rows = one.rows.copy()
    rows[0, 0] ^= 1
    collection.store.upsert([replace(one, rows=rows)], replaces=True)
    assert [damage.file for damage in collection.check()] == ["d0"]
    with pytest.raises(LfmError, match="not as it was written"):
        collection.search("word1")


def test_one_writer_at_a_time(engine: str, make: Make, tmp_path: Path) -> None:
    if engine == "client":
        pytest.skip("a server's one writer is a promise")
    collection = make()
    collection.add_texts(texts(2))
    code = (
        "import sys; from retrieval import stores\n"
        "store = stores.open_store(sys.argv[1])\n"
        "with store.writing(): print(store.count())"
    )
    address = f"{engine}:{tmp_path / 'store'}"
    with collection.store.writing():
        other = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True
        )
    assert other.returncode == 1
    assert "IndexBusy" in other.stderr


# ---- copying ----------------------------------------------------------------------------------


def test_a_copy_and_its_copy_back_rank_as_the_original(
    make: Make, tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval.stores import copying

    monkeypatch.setattr(copying, "BATCH", 10)
    with retrieval.open(tmp_path / "ours", model=WordsEncoder(), create=True) as ours:
        ours.add_texts(texts(30))
        ours.update(notes, meta={"team": "it's", "year": "2024"})
        ours.delete("d3")
        expected, vectors = answers(ours), rows(tmp_path / "ours")
    target = make().store
    with_index = stores.open_store(f"index:{tmp_path / 'ours'}")
    told = copy(with_index, target)
    assert (told.documents, told.copied, told.unchanged) == (41, 41, 0)
    collection = make()
    assert answers(collection) == expected
    assert answers(collection, team="it's") != expected
    again = copy(with_index, collection.store)
    assert (again.copied, again.unchanged, again.checksum) == (0, 41, told.checksum)
    back = stores.open_store(f"index:{tmp_path / 'back'}", create=True)
    assert copy(collection.store, back).checksum == told.checksum
    assert rows(tmp_path / "back") == vectors
    with retrieval.open(tmp_path / "back", model=WordsEncoder()) as index:
        assert answers(index) == expected
        assert index.check() == []
        assert index.update(notes).unchanged == 12


def rows(folder: Path) -> list[tuple[str, int, bytes]]:
    """Every passage's source, start and stored bytes."""
    passages = stores.open_store(f"index:{folder}").scan()
    return [(one.heading.source, one.chunk.start, one.rows.tobytes()) for one in passages]


def test_a_copy_that_was_stopped_goes_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval.stores import copying

    monkeypatch.setattr(copying, "BATCH", 6)
    with retrieval.open(tmp_path / "ours", model=WordsEncoder(), create=True) as ours:
        ours.add_texts(texts(20))
    source = stores.open_store(f"index:{tmp_path / 'ours'}")

    def stop(done: int, total: int, name: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(source, make().store, stop)
    told = copy(source, make().store)
    assert told.documents == 20
    assert 0 < told.copied < 20
    assert make().check() == []


@pytest.mark.parametrize(
    ("how", "told"), [({"model": WordsEncoder("other")}, "other"), ({"codec": "4bit"}, "codec")]
)
def test_rows_of_another_kind_are_refused_also_where_the_texts_are_the_same(
    make: Make, tmp_path: Path, how: dict[str, object], told: str
) -> None:
    collection = make()
    collection.add_texts(texts(4))
    before = answers(collection)
    options = {"model": WordsEncoder(), **how}
    with retrieval.open(tmp_path / "ours", create=True, **options) as ours:  # type: ignore[arg-type]
        ours.add_texts(texts(4))
    with pytest.raises(IndexMismatch, match=told):
        collection.attach(tmp_path / "ours")
    with pytest.raises(IndexMismatch, match=told):
        copy(stores.open_store(f"index:{tmp_path / 'ours'}"), collection.store)
    assert answers(collection) == before and collection.check() == []


def test_what_does_not_arrive_is_noticed(make: Make, tmp_path: Path) -> None:
    with retrieval.open(tmp_path / "ours", model=WordsEncoder(), create=True) as ours:
        ours.add_texts(texts(4))
    source, target = stores.open_store(f"index:{tmp_path / 'ours'}"), make().store
    real = target.scan

    def lossy(where: object = None) -> Iterator[object]:
        yield from list(real(where))[:-1]  # type: ignore[arg-type]

    target.scan = lossy  # type: ignore[method-assign, assignment]
    with pytest.raises(LfmError, match="copy again"):
        copy(source, target)


assert writing.PUT_CHUNKS  # the child process of a test sets it
