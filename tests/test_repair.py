"""A flipped bit in any file is named and never served, and repair brings back what was there."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import retrieval
from lfm2_mm.errors import IndexDamaged, IndexMismatch
from tests.indexes import NOTES, answers, files_of, flip, mixed, opened
from tests.words_encoder import WordsEncoder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return mixed(tmp_path)


def test_one_flipped_bit_in_any_file_is_named_never_served_and_mended(
    made: Path, tmp_path: Path
) -> None:
    """Bits spread over every file in turn; whatever is still answered is what was answered."""
    truth, chance, seen = answers(made), random.Random(3), set()
    for name in files_of(made):
        size = (made / name).stat().st_size
        for place in sorted({0, size // 2, size - 1, *chance.choices(range(size), k=4)}):
            harmed = tmp_path / "harmed"
            shutil.copytree(made, harmed)
            flip(harmed / name, place)
            told = {damage.file for damage in retrieval.open(harmed).check()}
            assert name in told, (name, place, told)
            try:
                found = answers(harmed)
            except (IndexDamaged, IndexMismatch):
                seen.add(name)
            else:
                assert found == truth, (name, place)
            shutil.rmtree(harmed)
    assert {"manifest.json", "catalog.sqlite", "catalog.sums"} < seen
    assert any(name.endswith(".vectors") for name in seen)


def harms() -> list[tuple[str, str]]:
    names = ["manifest.json", "catalog.sqlite", "catalog.sums"]
    names += [f"segments/*.{suffix}" for suffix in ("vectors", "rows", "sums", "json")]
    return [(name, harm) for name in names for harm in ("flip", "cut", "remove")]


@pytest.mark.parametrize(("name", "harm"), harms())
def test_repair_brings_back_what_was_there(made: Path, name: str, harm: str) -> None:
    """Texts are in the catalog and vectors can be made of them; without it files are read again."""
    truth = answers(made)
    (path,) = made.glob(name)
    if harm == "flip":
        flip(path, path.stat().st_size // 2)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    else:
        path.unlink()
    with opened(made) as index:
        expected = index.check()
        assert expected or (name, harm) == ("catalog.sums", "remove")  # as after a killed writer
        damaged, report = index.repair()
        assert damaged == expected
        assert index.check() == []
    if report.skipped:  # the text that no file holds was in the damaged catalog alone
        assert name == "catalog.sqlite"
        assert [(one.path, "no such file" in one.why) for one in report.skipped] == [
            ("given", True)
        ]
        with opened(made) as index:
            assert {Path(s.source).name for s in index.sources()} == set(NOTES)
            hits = index.search("money panda fox", 9, "colbert")
            assert {h.text for h in hits} >= set(NOTES.values()) - {NOTES["refunds.md"]}
    else:
        assert answers(made) == truth
    with opened(made) as index:
        assert index.repair()[0] == []


def test_repair_without_manifest_and_catalog_reads_the_sources_again(made: Path) -> None:
    (made / "manifest.json").unlink()
    (made / "catalog.sqlite").write_bytes(b"no database")
    with pytest.raises(IndexDamaged, match="repair"):
        answers(made)
    with opened(made) as index:
        report = index.repair()[1]
        assert (report.documents, {one.path for one in report.skipped}) == (3, {"given"})
        assert index.check() == []
        assert index.search("fox", 1)[0].text == NOTES["fox.txt"]


def test_repair_encodes_only_the_passages_that_were_damaged(tmp_path: Path) -> None:
    folder, encoder = tmp_path / "index", WordsEncoder(dim=512, document_length=24)
    texts = [(f"d{n:02d}", f"word{n} " * 20, "") for n in range(80)]
    with retrieval.open(folder, model=encoder, create=True) as index:
        index.add_texts(texts)
        truth = dict(index.rank("word3 word9 word20", 80, "colbert"))
    flip(folder / "segments/000001.vectors", 500_000)  # in one block of 64 KiB among thirteen
    encoder.encoded.clear()
    with retrieval.open(folder, model=encoder) as index:
        index.repair()
        assert index.check() == []
        assert dict(index.rank("word3 word9 word20", 80, "colbert")) == truth
    assert 1 <= len(encoder.encoded) <= 8


def test_repair_of_a_sound_index_does_nothing(made: Path) -> None:
    before = answers(made)
    with opened(made) as index:
        damaged, report = index.repair()
        assert (damaged, report.added, report.updated, report.removed) == ([], 0, 0, 0)
    assert answers(made) == before
