"""Batches encoded as jobs and attached: once or twice, alone or at once, killed or not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import retrieval
from lfm2_mm.errors import BadInput, IndexDamaged, IndexMismatch, IndexMissing
from retrieval import segments, storage, writer
from retrieval.index import Index
from retrieval.types import MODES
from tests.words_encoder import WordsEncoder

COUNT = 24


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(COUNT):
        text = f"# Part {n}\n\nshared word{n} word{n % 5}\n\n" * (1 + n % 4)
        (folder / f"{n:02d}.md").write_text(text)
    return sorted(folder.iterdir())


def encoded(files: Sequence[Path], into: Path, encoder: WordsEncoder | None = None) -> Path:
    return retrieval.encode_segment(files, into, model=encoder or WordsEncoder()).folder


def opened(folder: Path) -> Index:
    return retrieval.open(folder, model=WordsEncoder(), create=True)


def answers(folder: Path) -> list[object]:
    """All that searches say but for ids."""
    with opened(folder) as index:
        return [
            sorted((-h.score, h.source, h.start, h.text, h.matches) for h in found)
            for query in ("shared word3", "part word7 word1", "nothing of this")
            for mode in MODES
            for found in [index.search(query, 999, mode)]
        ]


def test_a_job_that_is_run_again_encodes_nothing(files: list[Path], tmp_path: Path) -> None:
    into, encoder = tmp_path / "parts", WordsEncoder()
    first = retrieval.encode_segment(files, into, model=encoder)
    passages = len(encoder.encoded)
    again = retrieval.encode_segment(reversed(files), into, model=encoder)
    assert first == again
    assert (first.documents, first.chunks, len(encoder.encoded)) == (COUNT, passages, passages)
    assert os.listdir(into) == [first.folder.name]
    assert encoded(files, tmp_path / "elsewhere").name == first.folder.name


def test_another_content_model_or_setting_is_another_segment(
    files: list[Path], tmp_path: Path
) -> None:
    into, words = tmp_path / "parts", WordsEncoder()
    names = {encoded(files, into).name, encoded(files[1:], into).name}
    names.add(encoded(files, into, WordsEncoder("others")).name)
    names.add(retrieval.encode_segment(files, into, model=words, codec="4bit").folder.name)
    names.add(retrieval.encode_segment(files, into, model=words, pool=2).folder.name)
    names.add(retrieval.encode_segment(files, into, model=words, meta={"a": "b"}).folder.name)
    files[3].write_text("another text")
    names.add(encoded(files, into).name)
    assert len(names) == 7
    assert {path.name for path in into.iterdir()} == names


def test_a_batch_is_a_sound_index_of_one_segment(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SEGMENT_CHUNKS", 5)
    monkeypatch.setattr(writer, "ENCODE_CHUNKS", 5)
    folder = encoded(files, tmp_path / "parts")
    assert len(list((folder / "segments").glob("*.vectors"))) == 1
    with opened(folder) as index:
        assert index.check() == []
        assert index.info().documents == COUNT


def test_attached_batches_rank_as_an_index_of_one_process(
    files: list[Path], tmp_path: Path
) -> None:
    with opened(tmp_path / "whole") as index:
        index.update(files)
    parts = [encoded(files[n : n + 7], tmp_path / "parts") for n in range(0, COUNT, 7)]
    encoder = WordsEncoder()
    with retrieval.open(tmp_path / "index", model=encoder, create=True) as index:
        report = index.attach(parts)
        assert (report.added, report.documents, encoder.encoded) == (COUNT, COUNT, [])
        assert index.check() == []
        assert index.update(files).unchanged == COUNT  # neither read nor encoded again
    assert answers(tmp_path / "index") == answers(tmp_path / "whole")


def test_attaching_twice_is_attaching_once(files: list[Path], tmp_path: Path) -> None:
    part = encoded(files, tmp_path / "parts")
    with opened(tmp_path / "index") as index:
        index.attach(part)
        before = storage.load(tmp_path / "index")
        report = index.attach([part, part])
        assert (report.added, report.updated, report.unchanged) == (0, 0, 2 * COUNT)
        assert storage.load(tmp_path / "index") == before
        index.delete(str(files[0]))
        assert index.attach(part).added == 1
        assert index.check() == []


def test_a_batch_brings_its_sources_up_to_date(files: list[Path], tmp_path: Path) -> None:
    with opened(tmp_path / "index") as index:
        index.update(files, meta={"team": "zoo"})
        files[0].write_text("zebra")
        new = tmp_path / "new.txt"
        new.write_text("giraffe")
        batch = retrieval.encode_segment(
            [*files[:2], new], tmp_path / "parts", model=WordsEncoder(), meta={"year": "9"}
        )
        report = index.attach(batch.folder)
        assert (report.added, report.updated, report.unchanged) == (1, 1, 1)
        assert index.check() == []
        meta = {Path(s.source).name: s.meta for s in index.sources()}
    assert meta["00.md"] == meta["01.md"] == {"team": "zoo", "year": "9"}
    assert (meta["new.txt"], meta["02.md"]) == ({"year": "9"}, {"team": "zoo"})
    with opened(tmp_path / "whole") as index:
        index.update([*files, new])
    assert answers(tmp_path / "index") == answers(tmp_path / "whole")


def test_any_index_of_the_model_can_be_attached(files: list[Path], tmp_path: Path) -> None:
    """Of several segments, with something deleted."""
    with opened(tmp_path / "other") as other:
        for path in files[:4]:
            other.update(path)
        other.delete("01.md")
    with opened(tmp_path / "index") as index:
        assert index.attach(tmp_path / "other").added == 3
        assert index.check() == []
        with pytest.raises(BadInput, match="itself"):
            index.attach(tmp_path / "index")
        with pytest.raises(IndexMissing, match="encode_segment"):
            index.attach([tmp_path / "other", tmp_path / "files"])


def test_what_is_estimated_of_a_whole_batch_is_taken_over(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LEAST", 10)
    part = encoded(files, tmp_path / "parts")

    def never(*_: object) -> None:
        raise AssertionError("estimated again")

    with opened(tmp_path / "index") as index:
        with monkeypatch.context() as patch:
            patch.setattr(segments, "estimates", never)
            index.attach(part)
        assert index.check() == []
        (mine,) = (tmp_path / "index/segments").glob("*.estimates")
        (theirs,) = (part / "segments").glob("*.estimates")
        assert mine.read_bytes() == theirs.read_bytes()
        index.delete(str(files[0]))
        index.compact()  # a part of it is estimated anew
        assert index.check() == []


def test_what_cannot_be_read_is_told_each_time(files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.pdf"
    bad.write_bytes(b"no pdf")
    encoder = WordsEncoder()
    first = retrieval.encode_segment([*files, bad], tmp_path / "parts", model=encoder)
    assert [Path(one.path).name for one in first.skipped] == ["bad.pdf"]
    assert retrieval.encode_segment([*files, bad], tmp_path / "parts", model=encoder) == first
    with opened(tmp_path / "index") as index:
        assert index.attach(first.folder).skipped == first.skipped
    with pytest.raises(BadInput, match=r"bad\.pdf"):
        retrieval.encode_segment(bad, tmp_path / "none", model=encoder)
    assert os.listdir(tmp_path / "none") == []


@pytest.mark.parametrize("change", ["write", "remove"])
def test_a_file_that_changes_meanwhile_is_refused(
    files: list[Path], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ENCODE_CHUNKS", 1)

    class Meddling(WordsEncoder):
        def encode_documents(
            self, texts: Sequence[str], progress: Callable[[int], None] | None = None
        ) -> list[np.ndarray]:
            if change == "write":
                files[-1].write_text("changed")
            else:
                files[-1].unlink(missing_ok=True)
            return super().encode_documents(texts, progress)

    with pytest.raises(BadInput, match="changed while"):
        encoded(files, tmp_path / "parts", Meddling())
    assert os.listdir(tmp_path / "parts") == []


@pytest.mark.parametrize("kept", [{"codec": "4bit"}, {"pool": 2}])
def test_other_settings_are_refused(
    files: list[Path], tmp_path: Path, kept: dict[str, object]
) -> None:
    part = retrieval.encode_segment(files, tmp_path / "parts", model=WordsEncoder(), **kept).folder  # type: ignore[arg-type]
    with opened(tmp_path / "index") as index:
        index.update(files[0])
        before = storage.load(tmp_path / "index")
        with pytest.raises(IndexMismatch, match="encode its files again"):
            index.attach(part)
        assert storage.load(tmp_path / "index") == before
    with opened(tmp_path / "new") as index:  # a new one takes the settings of what comes first
        index.attach(part)
        assert index.check() == []
    fixed = retrieval.open(tmp_path / "fixed", create=True, codec="int8", pool=1)
    with pytest.raises(BadInput, match="was made with"):
        fixed.attach(part)


def test_another_model_or_version_is_refused(files: list[Path], tmp_path: Path) -> None:
    part = encoded(files, tmp_path / "parts", WordsEncoder("others"))
    with opened(tmp_path / "index") as index:
        with pytest.raises(IndexMismatch, match="others"):
            index.attach(part)
        index.update(files[0])
    with (
        retrieval.open(tmp_path / "index") as index,  # opened with no model in mind
        pytest.raises(IndexMismatch, match="others"),
    ):
        index.attach(part)
    manifest = json.loads((part / "manifest.json").read_text())
    (part / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with opened(tmp_path / "index") as index, pytest.raises(IndexMismatch, match="format 99"):
        index.attach(part)


def test_a_damaged_batch_is_refused_or_does_no_harm(files: list[Path], tmp_path: Path) -> None:
    part = encoded(files, tmp_path / "parts")
    with opened(tmp_path / "start") as index:
        index.update(files[0])
    with opened(tmp_path / "whole") as index:
        index.update(files)
    start, whole, chance = answers(tmp_path / "start"), answers(tmp_path / "whole"), random.Random()
    refused = set()
    for path in [p for p in part.rglob("*") if p.is_file() and p.name != "lock"]:
        content = path.read_bytes()
        harmed = bytearray(content)
        harmed[chance.randrange(len(harmed))] ^= 4
        path.write_bytes(harmed)
        target = shutil.copytree(tmp_path / "start", tmp_path / "target")
        with opened(target) as index:
            try:
                index.attach(part)
                expected = whole
            except (IndexDamaged, IndexMismatch):
                refused.add(path.suffix)
                expected = start
            assert index.check() == [], path
        assert answers(target) == expected, path
        shutil.rmtree(target)
        path.write_bytes(content)
    assert refused >= {".sqlite", ".vectors", ".rows", ".sums"}


# ---- several processes ----------------------------------------------------------------------

JOB = """
import os, signal, sys, time
from pathlib import Path
import retrieval
from retrieval import writer
from tests.words_encoder import WordsEncoder

class Slow(WordsEncoder):
    def encode_documents(self, texts, progress=None):
        if sys.argv[3] == "die" and len(self.encoded) >= 30:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return super().encode_documents(texts, progress)

writer.ENCODE_CHUNKS, writer.SEGMENT_CHUNKS = 5, 10
print("ready", flush=True)
sys.stdin.readline()
encoder = Slow()
print(retrieval.encode_segment(Path(sys.argv[1]), sys.argv[2], model=encoder).folder.name)
print(len(encoder.encoded))
"""


def job(files: Path, into: Path, way: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, str(files), str(into), way]
    return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)


def test_workers_that_run_one_job_at_once_make_one_segment(
    files: list[Path], tmp_path: Path
) -> None:
    into = tmp_path / "parts"
    workers = [job(tmp_path / "files", into, "live") for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    told = set()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        out, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err
        told.add(out.split()[0])
    assert told == {path.name for path in into.iterdir()}
    assert len(told) == 1
    with opened(into / told.pop()) as index:
        assert index.check() == []
        assert index.info().documents == COUNT


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
def test_a_killed_job_leaves_nothing_to_attach_and_the_next_encodes_the_rest(
    files: list[Path], tmp_path: Path
) -> None:
    into = tmp_path / "parts"
    killed = job(tmp_path / "files", into, "die")
    killed.communicate("\n", timeout=300)
    assert killed.returncode == -9
    assert {path.name[0] for path in into.iterdir()} == {"."}  # hidden, and no segment yet
    out, err = job(tmp_path / "files", into, "live").communicate("\n", timeout=300)
    name, passages = out.split()[1:]
    assert [path.name for path in into.iterdir()] == [name], err
    with opened(into / name) as index:
        assert index.check() == []
        assert 0 < int(passages) < index.info().chunks - 20
        whole = encoded(files, tmp_path / "undisturbed")
    assert (whole.name, answers(whole)) == (name, answers(into / name))
