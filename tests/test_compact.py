"""Compaction changes no answer and gives space back; readers go on."""

from __future__ import annotations

from pathlib import Path

from retrieval import storage
from tests.indexes import opened


def test_compaction_keeps_every_answer_and_gives_space_back(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with opened(folder) as index:
        for n in range(12):
            index.add_texts((f"d{n}-{i}", f"number{n} common{i} text", "") for i in range(30))
        index.delete("d?-[0-4]")
        index.delete("d1?-*")
        assert len(list((folder / "segments").glob("*.vectors"))) == 10
        before, bytes_before = index.search("number3 common7", 500, "colbert"), index.info().bytes
        words = index.search("number3 common7", 500, "lexical")
        held = index.compact()
        assert (held.documents, held.bytes < bytes_before * 0.8) == (250, True)
        assert len(list((folder / "segments").glob("*.vectors"))) == 1
        assert index.search("number3 common7", 500, "colbert") == before
        assert index.search("number3 common7", 500, "lexical") == words
        assert index.check() == []
        index.compact()  # nothing to do is no error
        index.delete("*")
        assert index.compact().chunks == 0
        assert index.check() == []


def test_many_small_runs_leave_few_segments(tmp_path: Path) -> None:
    with opened(tmp_path / "index") as index:
        for n in range(40):
            index.add_texts([(f"d{n}", f"number{n}", "")])
        assert len(list((tmp_path / "index/segments").glob("*.vectors"))) <= 18
        assert len(index.search("number7", 99, "colbert")) == 40
        assert index.check() == []


def test_space_comes_back_by_itself_where_most_of_a_segment_was_replaced(tmp_path: Path) -> None:
    with opened(tmp_path / "index") as index:
        index.add_texts((f"d{n}", f"old number{n}", "") for n in range(40))
        index.add_texts((f"d{n}", f"new number{n}", "") for n in range(30))
        manifest = storage.load(tmp_path / "index")
        assert sum(entry.chunks for entry in manifest.segments) == manifest.chunks == 40
        assert index.check() == []


def test_a_reader_that_opened_before_a_compaction_reads_on(tmp_path: Path) -> None:
    with opened(tmp_path / "index") as writer:
        for n in range(5):
            writer.add_texts([(f"d{n}", f"always number{n}", "")])
        with opened(tmp_path / "index") as reader, reader._reader.snapshot() as view:
            writer.delete("d0")
            writer.compact()
            query = reader.encoder().encode_queries(["always"])[0]
            assert len(view.vectors.candidates(query, 9)[0]) == 5
            assert len(reader._reader.catalog().alive(view.manifest.generation)) == 5
        with opened(tmp_path / "index") as reader:
            assert len(reader.search("always", 9, "colbert")) == 4
