"""Several server processes over one index, as behind any HTTP balancer; one of them is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import retrieval
from tests.words_encoder import WordsEncoder

SERVER = """
import sys
from pathlib import Path
import retrieval
from apps import server
from apps.demos import site
from apps.service import Service
from tests.words_encoder import WordsEncoder

index = retrieval.open(Path(sys.argv[1]), model=WordsEncoder(), create=True)
app = server.build(Service([], {"notes": index}), loopback=True)
served = site.Site([], host="127.0.0.1", port=0, app=app)
print(served.address, flush=True)
sys.stdin.read()
served.close()
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path / "index")],
            stdin=-1, stdout=-1, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    yield started
    for one in started:
        one.kill()
        one.communicate()


def add(address: str, name: str, text: str) -> int:
    body = {"upsert": [{"id": name, "text": text}]}
    return httpx.post(f"{address}v1/indexes/notes/documents", json=body, timeout=60).status_code


def found(address: str, query: str) -> list[tuple[str, float]]:
    body = {"query": query, "k": 50, "mode": "colbert"}
    answer = httpx.post(f"{address}v1/indexes/notes/search", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [(hit["source"], hit["score"]) for hit in answer.json()["hits"]]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL here")
def test_what_one_process_writes_all_answer_and_a_killed_one_is_not_missed(
    servers: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Requests take turns, as a balancer lets them; the processes share the folder alone."""
    addresses = [one.stdout.readline().strip() for one in servers if one.stdout]
    turns = itertools.cycle(addresses)
    for n in range(10):
        assert add(next(turns), f"d{n}", f"shared word{n}") == 200
    first, second = (found(address, "shared word3") for address in addresses)
    assert first == second
    assert len(first) == 10 and first[0][0] == "d3"
    with retrieval.open(tmp_path / "index", model=WordsEncoder()) as index:
        from retrieval.writer import writing

        with writing(index.folder, index.encoder):  # a third process writes: told, not lost
            assert add(addresses[0], "d10", "busy") == 409
            assert found(addresses[1], "shared word3") == first
    servers[0].send_signal(signal.SIGKILL)
    servers[0].wait()
    assert add(addresses[1], "d0", "shared changed") == 200
    assert found(addresses[1], "changed")[0][0] == "d0"
    with retrieval.open(tmp_path / "index", model=WordsEncoder()) as index:
        assert index.check() == []
        assert index.info().documents == 10
