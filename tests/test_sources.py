"""Hostile names, and folders and paths that may not be looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lfm2_mm.errors import BadInput, IndexMissing
from retrieval.files import children as real_children
from tests.indexes import opened, written


def test_hostile_names_are_kept_found_and_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    names = [
        b"line\nbreak.txt",
        b"caf\xe9.txt",
        b"a..b.txt",
        b"'; DROP TABLE documents; --.txt",
    ]
    names += [b"[a-z]*?.txt", b"back\\slash.txt", b" .txt"]
    for number, name in enumerate(names):
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(f"zebra number{number}")
        except OSError:
            pytest.skip(f"this file system takes no name such as {name!r}")
    with opened(tmp_path / "index") as index:
        assert index.update([folder, folder / ".." / "files"]).added == len(names)
        sources = [s.source for s in index.sources()]
        assert all(source.isprintable() for source in sources)
        assert index.update(folder, prune=True).unchanged == len(names)
        for source in sources:
            assert index.delete(source).removed == 1
        assert index.check() == []


def test_a_name_is_taken_as_it_is_typed_or_as_it_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    names = [b"line\nbreak.txt", b"caf\xe9.txt", b"a*b[c].txt", b"back\\x41.txt"]
    for name in names:
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("a zebra")
        except OSError:
            pytest.skip(f"this file system takes no name such as {name!r}")
    with opened(tmp_path / "index") as index:
        index.update(folder)
        for name in names:
            typed = os.fsdecode(name)
            (hit,) = index.search("zebra", where={"source": typed})
            for pattern in (hit.source, hit.source.rpartition("/")[2]):
                found = {h.source for h in index.search("zebra", where={"source": pattern})}
                assert hit.source in found
        for name in names:
            assert index.delete(os.fsdecode(name)).removed == 1


def test_what_is_not_utf8_is_no_metadata_and_no_filter(tmp_path: Path) -> None:
    notes, odd = written(tmp_path / "notes"), "caf\udce9"  # as a command line brings it
    with opened(tmp_path / "index") as index:
        for meta in ({"team": odd}, {odd: "zoo"}):
            with pytest.raises(BadInput, match="not UTF-8"):
                index.update(notes, meta=meta)
        index.update(notes, meta={"team": "zoo"})
        for key in ("team", "title", "type"):
            with pytest.raises(BadInput, match="not UTF-8"):
                index.search("zebra", where={key: odd})


def test_values_may_be_numbers_and_paths_and_nothing_else(tmp_path: Path) -> None:
    notes = written(tmp_path / "notes")
    with opened(tmp_path / "index") as index:
        index.update(notes, meta={"year": 2024, 7: "seven"})  # type: ignore[dict-item]
        for where in (
            {"year": 2024},
            {"year>=": 2023.5},
            {"source": notes / "fox.txt", "7": "seven"},
        ):
            assert [Path(h.source).name for h in index.search("fox", 1, where=where)] == ["fox.txt"]
        for odd in ("source=*.txt", {"source": ["*.txt"]}, {"year": None}, [("year",)]):
            with pytest.raises(BadInput, match="a key and a value"):
                index.search("fox", where=odd)  # type: ignore[arg-type]
        assert index.delete(notes / "fox.txt").removed == 1
        with pytest.raises(BadInput, match="no path at all"):
            index.update([])


def test_an_index_that_was_taken_away_is_missing_not_empty(tmp_path: Path) -> None:
    with opened(tmp_path / "index") as index:
        assert index.search("fox") == []  # nothing was put in yet
        index.update(written(tmp_path / "notes"))
        assert index.search("fox")
        (tmp_path / "index").rename(tmp_path / "elsewhere")
        for ask in (lambda: index.search("fox"), index.info, index.sources):
            with pytest.raises(IndexMissing, match="no longer there"):
                ask()
        (tmp_path / "elsewhere").rename(tmp_path / "index")
        assert index.search("fox")


def test_a_type_may_be_typed_as_a_suffix(tmp_path: Path) -> None:
    with opened(tmp_path / "index") as index:
        index.update(written(tmp_path / "notes"))
        assert len(index.search("quick slow", where={"type": ".TXT"})) == 2


def test_a_link_that_leads_nowhere_is_told_by_its_own_name(tmp_path: Path) -> None:
    notes, away = written(tmp_path / "notes"), tmp_path / "away.txt"
    away.write_text("a zebra")
    link = notes / "link.txt"
    try:
        link.symlink_to(away)
    except OSError:
        pytest.skip("no links here")
    with opened(tmp_path / "index") as index:
        assert index.update(notes).added == 4
        away.unlink()
        (skipped,) = index.update(notes).skipped
        assert skipped.path == str(link) and "No such file" in skipped.why
        assert index.search("zebra")  # what was indexed stays until it is asked to go
        assert index.check() == []


def test_an_empty_name_deletes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "index") as index:
        index.update(written(tmp_path / "notes"))
        with pytest.raises(BadInput, match="empty source"):
            index.delete("")
        with pytest.raises(BadInput, match="an empty name"):
            index.update("")
        assert index.info().documents == 3


def test_an_index_among_the_files_is_passed_over(tmp_path: Path) -> None:
    notes = written(tmp_path / "notes")
    with opened(notes / "deep" / "one.index") as other:
        other.update(notes / "fox.txt")
    with opened(tmp_path / "index") as index:
        report = index.update(notes)
        assert (report.added, report.skipped) == (3, ())


def test_a_folder_that_may_not_be_read_stops_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = written(tmp_path / "notes")
    closed = notes / "closed"
    closed.mkdir()
    (closed / "inside.txt").write_text("zebra")

    def children(folder: str, *, named: bool) -> list[str]:
        if Path(folder) == closed:  # as for everybody but the superuser, who may run these tests
            raise PermissionError(13, "Permission denied")
        return real_children(folder, named=named)

    with opened(tmp_path / "index") as index:
        index.update(notes)
        monkeypatch.setattr("retrieval.files.children", children)
        report = index.update(notes, prune=True)
        assert [Path(one.path).name for one in report.skipped] == ["closed"]
        assert (report.removed, report.documents) == (0, 4)


def test_a_path_that_may_not_be_looked_at_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, stat = written(tmp_path / "notes"), os.stat

    def refusing(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("another's"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", refusing)
    with opened(tmp_path / "index") as index:
        report = index.update([notes, notes / "another's"])
    assert report.added == 3
    assert [(Path(one.path).name, one.why) for one in report.skipped] == [
        ("another's", "Permission denied")
    ]
