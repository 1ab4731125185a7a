"""Many workers: the same bytes as one, whoever is killed; processes and a local Ray cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import retrieval
from apps import cli
from lfm2_mm.errors import BadInput, LfmError, Unreadable
from retrieval import parallel, shards
from retrieval.processes import Processes
from retrieval.shards import Settings, Shard, Workers
from retrieval.stores.collection import Collection, open_collection
from tests.words_encoder import WordsEncoder

COUNT = 24
ROOT = Path(__file__).parent.parent
needs_kill = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
Start = Callable[[Settings], Workers]


class Fatal(WordsEncoder):
    """Writes down what it encodes, and kills its process at one text until a file is there."""

    def __init__(
        self, log: Path, at: str = "", until: Path | None = None, pause: float = 0
    ) -> None:
        super().__init__()
        self.log, self.at, self.until, self.pause = log, at, until, pause

    def encode_documents(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        time.sleep(self.pause)
        with self.log.open("a") as file:
            file.writelines(f"{text.split()[-1]}\n" for text in texts)
        there = self.at and any(self.at in text.split() for text in texts)
        if there and not (self.until and self.until.exists()):
            if self.until:
                self.until.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_documents(texts, progress)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_FILES", 5)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(COUNT):
        (folder / f"{n:02d}.md").write_text(f"# Part {n}\n\nshared word{n % 5} only{n}")
    return folder


@pytest.fixture(params=["processes", "ray"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Two workers of each kind."""
    if request.param == "processes":
        yield lambda settings: Processes(2, settings)
        return
    if not find_spec("ray"):
        pytest.skip("ray is not installed: pip install 'lfm2-mm[ray]'")
    from retrieval import cluster

    # Ray's daemons look for a cloud around them, usage reports or not: refused, but no failure.
    monkeypatch.setenv("LFM2_MM_TEST_REFUSED", "")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}")
    cluster.connect("local")
    yield lambda settings: cluster.Actors(2, settings)
    cluster.leave()


def updated(place: Path, files: Path, start: Start, encoder: WordsEncoder) -> retrieval.Report:
    with retrieval.open(place, model=encoder, create=True) as index:
        return parallel.update(index, [files], start, place.with_suffix(".parts"))


def one(settings: Settings) -> Workers:
    return Processes(1, settings)


def held(place: Path) -> dict[str, object]:
    """Every byte of the segments, and every row with its id."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in sorted((place / "segments").iterdir())
    }
    with retrieval.open(place, model=WordsEncoder()) as index:
        assert index.check() == []
        hits = index.search("shared part", 99, "colbert")
        return found | {"hits": [(h.id, h.source, h.text, h.score) for h in hits]}


@needs_kill
def test_a_killed_worker_costs_its_shard_and_changes_nothing(
    files: Path, tmp_path: Path, start: Start
) -> None:
    """One worker, two workers, and two of which one is killed in the middle: the same bytes."""
    updated(tmp_path / "alone", files, one, WordsEncoder())
    log, fatal = tmp_path / "log", tmp_path / "killed"
    report = updated(tmp_path / "killed.i", files, start, Fatal(log, "only12", fatal))
    assert fatal.exists()
    assert (report.added, report.documents, report.unchanged) == (COUNT, COUNT, 0)
    assert held(tmp_path / "killed.i") == held(tmp_path / "alone")
    again = log.read_text().split()
    shard = {f"only{n}" for n in range(10, 15)}
    assert {text for text in again if again.count(text) > 1} <= shard  # nothing else twice
    assert not (tmp_path / "killed.parts").exists()
    with retrieval.open(tmp_path / "plain", model=WordsEncoder(), create=True) as plain:
        plain.update(files)
        hits = plain.search("shared part", 99, "colbert")
    assert [(h.source, h.score) for h in hits] == [
        (source, score)
        for _, source, _, score in held(tmp_path / "alone")["hits"]  # type: ignore[attr-defined]
    ]


def test_no_more_workers_start_than_there_are_shards(files: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Counted(Processes):
        def wait(self) -> tuple[Shard, str | Exception]:
            seen.append(len(multiprocessing.active_children()))
            return super().wait()

    before = len(multiprocessing.active_children())
    updated(tmp_path / "i", files, lambda s: Counted(4096, s), WordsEncoder())
    assert max(seen) - before == -(-COUNT // shards.SHARD_FILES)


@pytest.mark.parametrize("start", ["ray"], indirect=True)
def test_the_readme_s_cluster(start: Start, tmp_path: Path) -> None:
    """Within the cluster that the fixture started."""
    (block,) = re.findall(
        r"^<!-- runs as a test with Ray -->\n```console\n\$ lfm2-mm (.*?)\n```",
        (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S,
    )  # fmt: skip
    words = shlex.split(block.replace(" docs ", f" {ROOT / 'docs' / 'index-format.md'} "))
    words[words.index("ray.index")] = str(tmp_path / "ray.index")
    assert cli.main(words) == 0
    with retrieval.open(tmp_path / "ray.index") as index:
        assert index.info().documents == 1
        assert index.check() == []


@needs_kill
def test_a_shard_that_kills_every_worker_is_told_and_the_rest_stays(
    files: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(LfmError, match=r"3 workers died while they encoded .*10\.md"):
        updated(tmp_path / "i", files, lambda s: Processes(2, s), Fatal(log, "only12"))
    log.unlink()
    report = updated(tmp_path / "i", files, one, Fatal(log))
    assert report.added == COUNT
    assert "only0" not in log.read_text().split()


class Broken(WordsEncoder):
    def encode_documents(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        raise Unreadable("a file", "of the encoder") if len(texts) > 1 else ValueError("odd")


@pytest.mark.parametrize("number", [1, COUNT])
def test_what_goes_wrong_in_a_worker_is_told_here(files: Path, tmp_path: Path, number: int) -> None:
    for path in sorted(files.iterdir())[number:]:
        path.unlink()
    with pytest.raises(LfmError, match="ValueError: odd" if number == 1 else "of the encoder"):
        updated(tmp_path / "i", files, one, Broken())


KILLED = """
import sys
from pathlib import Path
from retrieval import shards
from tests.test_workers import Fatal, Processes, updated

if __name__ == "__main__":
    shards.SHARD_FILES = 5
    place, files, log = map(Path, sys.argv[1:])
    updated(place, files, lambda s: Processes(2, s), Fatal(log, pause=0.3))
"""


@needs_kill
def test_a_killed_run_is_gone_on_with(files: Path, tmp_path: Path) -> None:
    place, log = tmp_path / "i", tmp_path / "log"
    updated(tmp_path / "alone", files, one, WordsEncoder())
    parts = place.with_suffix(".parts")
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(place), str(files), str(log)])
    end = time.monotonic() + 120
    while len(list(parts.glob("segment-*"))) < 2:
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.wait()
    time.sleep(0.5)  # its workers end with it
    finished = list(parts.glob("segment-*"))
    log.unlink()
    report = updated(place, files, one, Fatal(log))
    assert report.added == COUNT
    assert len(log.read_text().split()) <= COUNT - 4 * len(finished)
    assert held(place) == held(tmp_path / "alone")


def test_only_what_changed_is_encoded_and_what_cannot_be_read_is_told(
    files: Path, tmp_path: Path
) -> None:
    place, log = tmp_path / "i", tmp_path / "log"
    for n in range(6):  # a shard of nothing but such
        (files / f"0_bad{n}.pdf").write_bytes(b"no pdf")
    report = updated(place, files, one, Fatal(log))
    assert (report.added, len(report.skipped)) == (COUNT, 6)
    log.unlink()
    (files / "03.md").write_text("changed zebra")
    (files / "04.md").unlink()
    with retrieval.open(place, model=Fatal(log)) as index:
        parts = tmp_path / "elsewhere"
        told = parallel.update(index, [files], one, parts, prune=True, meta={"team": "zoo"})
        assert (told.updated, told.removed, told.unchanged) == (1, 1, COUNT - 2)
        assert log.read_text().split() == ["zebra"]
        assert all(source.meta == {"team": "zoo"} for source in index.sources())
        with pytest.raises(BadInput, match="among the files"):
            parallel.update(index, [tmp_path], one, files)


@pytest.mark.parametrize("engine", ["lancedb", "qdrant"])
def test_workers_fill_a_store(engine: str, files: Path, tmp_path: Path) -> None:
    needs = {"lancedb": "lancedb", "qdrant": "qdrant_edge"}[engine]
    if not find_spec(needs):
        pytest.skip(f"{needs} is not installed")
    place = f"{engine}:{tmp_path / 'store'}"
    collection: Collection
    with open_collection(place, model=WordsEncoder(), create=True) as collection:
        report = parallel.update(collection, [files], one, tmp_path / "parts")
        assert (report.added, report.documents, collection.check()) == (COUNT, COUNT, [])
        again = parallel.update(collection, [files], one, tmp_path / "parts")
        assert (again.added, again.unchanged) == (0, COUNT)


def test_the_command_line_with_the_real_encoder(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes of one and of two workers; every worker takes one thread."""
    for number in "12":
        words = ["index", str(files), "--index", str(tmp_path / number), "--workers", number]
        assert cli.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["added"] == COUNT
    first, second = (
        [path.read_bytes() for path in sorted((tmp_path / n / "segments").iterdir())] for n in "12"
    )
    assert first == second
    assert cli.main(["index", str(files), "--index", "i", "--parts", "p"]) == 2
    assert cli.main(["index", str(files), "--store", "lancedb:s3://a/b", "--workers", "2"]) == 1
    assert "--parts" in capsys.readouterr().err
