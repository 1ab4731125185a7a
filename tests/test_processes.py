"""Readers, and a second writer, in other processes while one writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.indexes import opened

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
