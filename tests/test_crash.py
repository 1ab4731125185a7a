"""The index survives kill -9 at random moments, a full disk, and vectors that are none."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import retrieval
from lfm2_mm.errors import BadInput, LfmError
from tests.indexes import answers, mixed, opened
from tests.words_encoder import WordsEncoder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return mixed(tmp_path)


KILLS = int(os.environ.get("LFM2_MM_KILLS", "30"))  # some hundred take minutes: by the variable


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here: workers cannot be killed")
def test_killed_at_random_moments_it_is_sound_and_goes_on() -> None:
    """See tests/crash.py for what is asserted after each kill."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--kills", str(KILLS), "--seed", "7"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(job["killed"] for job in told.values()) == KILLS


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes where that can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` here: no disk that can be filled")
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_and_what_was_published_stays(disk: Path) -> None:
    with opened(disk / "index") as index:
        index.add_texts([("first", "quick fox", "")])
        texts = [(f"d{n}", f"word{n} " * 200, "") for n in range(5000)]
        with pytest.raises(LfmError, match=r"full|No space"):
            index.add_texts(texts)
        assert index.check() == []
        assert index.search("quick fox", 1)[0].source == "first"
    (disk / "index" / "segments").stat()
    with opened(disk / "index") as index:  # there is room again: what is left behind goes
        index.add_texts(texts[:3])
        assert index.check() == []
        assert index.info().documents >= 4


def test_on_a_disk_without_a_byte_left_searches_go_on(disk: Path) -> None:
    """SQLite needs a file for memory that processes share; without room it must do without."""
    with opened(disk / "index") as index:
        texts = [("first", "quick fox", ""), ("second", "slow panda", "")]
        index.add_texts(texts, meta={"team": "zoo"})
    truth = answers(disk / "index")
    room = disk / "room"
    with contextlib.suppress(OSError), room.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with opened(disk / "index") as index:
        assert index.check() == []
        assert index.search("quick fox", 1)[0].source == "first"
        for change in (lambda: index.delete("first"), index.compact, index.repair):
            with pytest.raises(LfmError, match=r"full|No space|disk I/O.*free some space"):
                change()
        with pytest.raises(LfmError, match=r"full|No space"):
            retrieval.open(disk / "new", model=WordsEncoder(), create=True).add_texts(
                [("a", "b", "")]
            )
        assert answers(disk / "index") == truth
        room.unlink()  # the reader that was opened without that file sees what a writer does now
        with opened(disk / "index") as other:
            other.delete("first")
            assert index.search("quick fox")[0].source == "second"
        assert index.check() == []


LIMITED = """
import resource, signal, sys
import retrieval
from lfm2_mm.errors import LfmError
from tests.words_encoder import WordsEncoder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond it is then an error of the disk
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
index = retrieval.open(sys.argv[1], model=WordsEncoder())
try:
    index.add_texts((f"d{n}", f"word{n} " * 200, "") for n in range(3000))
except LfmError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit of file sizes here")
def test_a_disk_that_takes_no_more_is_told_and_what_was_published_stays(made: Path) -> None:
    truth = answers(made)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "stays" in done.stdout
    with opened(made) as index:
        assert index.check() == []
        index.add_texts([("more", "text", "")])
        index.delete("more")
        for source in [s.source for s in index.sources() if s.source.startswith("d")]:
            index.delete(source)
    assert answers(made) == truth


INTERRUPTED = """
import os, signal, sys
import retrieval
from retrieval import writer
from tests.words_encoder import WordsEncoder

class Dying(WordsEncoder):
    def encode_documents(self, texts, progress=None):
        if len(self.encoded) >= 600:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_documents(texts, progress)

writer.SEGMENT_CHUNKS = 64
retrieval.open(sys.argv[1], model=Dying(), create=True).update(sys.argv[2])
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
def test_a_run_killed_at_60_percent_encodes_only_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(1000):
        (folder / f"{n:04d}.txt").write_text(f"document number{n}")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "index"), str(folder)]
    assert subprocess.run(command, check=False).returncode == -9
    encoder = WordsEncoder()
    with retrieval.open(tmp_path / "index", model=encoder) as index:
        assert index.check() == []
        kept = index.info().chunks
        assert 600 - 64 <= kept <= 640  # all but the segment that was being written
        report = index.update(folder)
        assert (report.unchanged, report.added) == (kept, 1000 - kept)
        assert len(encoder.encoded) == 1000 - kept
        assert index.check() == []


class Wrong(WordsEncoder):
    """Gives `vectors` for the fifth document and what is right for the others."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        self.wrong = vectors

    def encode_documents(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        found = super().encode_documents(texts, progress)
        return [self.wrong if "five" in t else v for t, v in zip(texts, found, strict=True)]


@pytest.mark.parametrize(
    "vectors",
    [np.full((2, 32), np.nan), np.full((2, 32), np.inf), np.zeros((2, 31)), np.zeros(32)],
)
def test_wrong_vectors_are_refused_and_the_index_stays(made: Path, vectors: np.ndarray) -> None:
    truth = answers(made)
    with retrieval.open(made, model=Wrong(vectors.astype(np.float32))) as index:
        with pytest.raises(BadInput, match="passage"):
            index.add_texts((str(n), word, "") for n, word in enumerate(["one", "five", "two"]))
        assert index.check() == []
    assert answers(made) == truth
