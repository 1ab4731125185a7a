"""The index survives kill -9 at random moments, a full disk, and flipped bits in every file."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import retrieval
from lfm2_mm.errors import BadInput, IndexDamaged, IndexMismatch, LfmError
from retrieval import storage
from retrieval.files import children as real_children
from retrieval.filters import Where
from retrieval.index import Index
from retrieval.scoring import maxsim
from retrieval.types import MODES
from tests.words_encoder import WordsEncoder

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


NOTES = {
    "refunds.md": "# Refunds\n\nMoney comes back in five days.",
    "fox.txt": "The quick brown fox jumps over the lazy dog.",
    "panda.txt": "A slow red panda sleeps.",
}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def made(tmp_path: Path, notes: Path) -> Path:
    """An index of three files and a given text, with something deleted."""
    folder = tmp_path / "index"
    with opened(folder) as index:
        index.update(notes, meta={"team": "zoo"})
        index.add_texts([("given", "no file holds this zebra", ""), ("gone", "deleted", "")])
        index.delete("gone")
    return folder


def opened(folder: Path, name: str = "words") -> Index:
    return retrieval.open(folder, model=WordsEncoder(name), create=True)


def answers(folder: Path) -> list[object]:
    """All that searches say but for ids."""
    with opened(folder) as index:
        return [
            [
                (Path(h.source).name, h.start, h.text, round(h.score, 4))
                for h in index.search("quick money panda zebra", 9, mode, where)
            ]
            for mode in MODES
            for where in ({}, {"team": "zoo"}, {"date>=": "2000"})
        ]


def files_of(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "lock")  # which is empty


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


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)


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


# ---- compaction -----------------------------------------------------------------------------


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


# ---- the disk is full -----------------------------------------------------------------------


def test_a_full_disk_is_told_and_what_was_published_stays(tmp_path: Path) -> None:
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
    try:
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
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


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


# ---- several processes ----------------------------------------------------------------------

READER = """
import sys, time
import retrieval
from tests.words_encoder import WordsEncoder

index = retrieval.open(sys.argv[1], model=WordsEncoder())
searches = 0
print("reading", flush=True)
end = time.monotonic() + 60
while not searches or index.info().documents != 11:  # the writer's last act
    assert time.monotonic() < end
    for mode in ("hybrid", "colbert", "lexical"):
        texts = {hit.text for hit in index.search("always", 50, mode) if hit.source != "end"}
        assert len(texts) == 1, texts
        searches += 1
print(searches)
"""


def test_readers_in_other_processes_see_whole_states_during_updates_and_compaction(
    tmp_path: Path,
) -> None:
    """Ten documents always of one number: two numbers at once would be half a state."""

    def state(number: int) -> list[tuple[str, str, str]]:
        return [(f"d{n}", f"always number{number}", "") for n in range(10)]

    with opened(tmp_path / "index") as index:
        index.add_texts(state(0))
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(tmp_path / "index")],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        for number in range(1, 16):
            index.add_texts(state(number))
            if number % 4 == 0:
                index.compact()
        index.add_texts([("end", "the end", "")])
        for reader in readers:
            out, err = reader.communicate(timeout=120)
            assert reader.returncode == 0, err
            assert int(out) > 3
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


WRITER = """
import sys
import retrieval
from lfm2_mm.errors import IndexBusy
from tests.words_encoder import WordsEncoder

class Slow(WordsEncoder):
    def encode_documents(self, texts, progress=None):
        print("encoding", flush=True)
        sys.stdin.readline()
        return super().encode_documents(texts, progress)

try:
    retrieval.open(sys.argv[1], model=Slow(), create=True).add_texts([(sys.argv[2], "text", "")])
except IndexBusy as error:
    print(error)
    sys.exit(5)
"""


def test_of_two_writers_the_second_is_told_and_the_first_finishes(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / "index"), name]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first = start("first")
    assert first.stdout is not None
    assert first.stdout.readline() == "encoding\n"
    second = start("second")
    out, _ = second.communicate(timeout=60)
    assert (second.returncode, "another process is writing" in out) == (5, True)
    first.communicate("\n", timeout=60)
    assert first.returncode == 0
    with opened(tmp_path / "index") as index:
        assert [s.source for s in index.sources()] == ["first"]


# ---- vectors that are none, and awkward sizes -----------------------------------------------


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


@pytest.mark.parametrize("lengths", [[1], [1, 1, 2], [*range(1, 513, 7), 512], [512] * 3])
def test_rankings_are_those_of_exact_maxsim(tmp_path: Path, lengths: list[int]) -> None:
    """Documents of 1 to 512 tokens, under every filter, against float32 without any index."""
    encoder = WordsEncoder(dim=48, document_length=512)
    chance = np.random.default_rng(5)
    texts = {
        f"d{n}": " ".join(f"w{i}" for i in chance.integers(0, 90, length - 1)) or "."
        for n, length in enumerate(lengths)
    }
    with retrieval.open(tmp_path / "index", model=encoder, create=True, codec="float16") as index:
        index.add_texts(((s, t, "") for s, t in texts.items()), meta={"all": "yes"})
        for query in ("w1", "w2 w3 w4 w5 w6 w7 w8"):
            vectors = encoder.encode_queries([query])[0]
            wanted = maxsim(vectors, encoder.encode_documents(list(texts.values())))
            exact = dict(zip(texts, wanted.tolist(), strict=True))
            found = index.search(query, 9999, "colbert")
            assert {h.source for h in found} == set(texts)
            assert len(found) == len(texts)
            for hit in found:  # float16 is off by at most 2^-11 a query token
                assert hit.score == pytest.approx(exact[hit.source], abs=len(vectors) * 2**-11)
            one = index.search(query, 9, "colbert", {"source": "d0", "all": "yes"})
            assert [h.source for h in one] == ["d0"]
            for mode in MODES:
                assert index.search(query, 9, mode, {"source": "none*"}) == []
                assert index.search(query, 9, mode, {"date": "2020"}) == []  # texts have no date


# ---- resuming, names, dates -----------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"date": "2024"}, {"b", "c"}),
        ({"date": "2024-02"}, {"c"}),
        ({"date": "2024-02-29"}, {"c"}),
        ({"date>=": "2024"}, {"b", "c", "d"}),
        ({"date>": "2024"}, {"d"}),
        ({"date<": "2024-02-29"}, {"a", "b"}),
        ({"date<=": "2024-02-29"}, {"a", "b", "c"}),
        ({"date>=": "2024", "date<": "2025"}, {"b", "c"}),
        ([("date", "2024"), ("source", "b*")], {"b"}),
        ({"year>=": "9"}, {"b", "c"}),
        ({"year<": "100"}, {"a"}),
        ({"team>": "m"}, {"c"}),
        ([("team>", "a"), ("team<", "m")], {"b"}),
    ],
)
def test_dates_and_comparisons(tmp_path: Path, where: Where, expected: set[str]) -> None:
    days = {"a": "2023-12-31", "b": "2024-01-01", "c": "2024-02-29", "d": "2025-06-01"}
    meta = {
        "a": {"year": "8"},
        "b": {"year": "100", "team": "hr"},
        "c": {"year": "2000", "team": "sales"},
    }
    with opened(tmp_path / "index") as index:
        for name, day in days.items():
            path = tmp_path / f"{name}.txt"
            path.write_text(f"zebra {name}")
            moment = datetime.fromisoformat(f"{day}T12:00").timestamp()
            os.utime(path, (moment, moment))
            index.update(path, meta=meta.get(name, {}))
        for mode in MODES:
            found = {Path(hit.source).stem for hit in index.search("zebra", 9, mode, where)}
            assert found == expected, mode
        for bad, told in (({"date": "soon"}, "2024-05-31"), ({"page": "x"}, "whole number")):
            with pytest.raises(BadInput, match=told):
                index.search("zebra", where=bad)


def test_pooled_vectors_are_fewer_and_still_tell_which_words_matched(tmp_path: Path) -> None:
    tokens = {}
    for factor in (1, 2):
        folder = tmp_path / str(factor)
        with retrieval.open(folder, model=WordsEncoder(), create=True, pool=factor) as index:
            index.add_texts([("a", "quick brown fox and lazy dog", ""), ("b", "red panda", "")])
            tokens[factor] = index.info().tokens
            (hit,) = index.search("lazy fox", 1, "colbert")
            assert (hit.source, {m.word for m in hit.matches}) == ("a", {"lazy", "fox"})
            assert index.check() == []
    assert tokens == {1: 7 + 3, 2: 4 + 2}
    with pytest.raises(BadInput, match="pool 2, not 1"):
        retrieval.open(tmp_path / "2", pool=1)


def test_recall_is_measured_and_a_target_found(made: Path) -> None:
    with opened(made) as index:
        found = index.recall(3)
        assert (found.k, found.value, found.queries) == (3, 1.0, 4)
        assert index.recall(3, ["quick fox"], target=0.98).reached
        index.set_effort(2000)
        assert storage.load(made).effort == 2000
        assert index.check() == []


def test_a_folder_that_may_not_be_read_stops_nothing_and_loses_nothing(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = notes / "closed"
    closed.mkdir()
    (closed / "inside.txt").write_text("zebra")

    def children(folder: str, *, named: bool) -> list[str]:
        if Path(folder) == closed:  # as for everybody but the superuser, who may run these tests
            raise PermissionError(13, "Permission denied")
        return real_children(folder, named=named)

    with opened(notes.parent / "index") as index:
        index.update(notes)
        monkeypatch.setattr("retrieval.files.children", children)
        report = index.update(notes, prune=True)
        assert [Path(one.path).name for one in report.skipped] == ["closed"]
        assert (report.removed, report.documents) == (0, 4)


def test_a_path_that_may_not_be_looked_at_is_skipped_with_its_reason(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refusing(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("another's"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", refusing)
    with opened(notes.parent / "index") as index:
        report = index.update([notes, notes / "another's"])
    assert report.added == 3
    assert [(Path(one.path).name, one.why) for one in report.skipped] == [
        ("another's", "Permission denied")
    ]
