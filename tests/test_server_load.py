"""Twenty clients at once, a server that is killed and started again, one that is asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import retrieval
from apps.service import Service
from tests import load, served

ROOT = Path(__file__).parent.parent


def chat(http: httpx.Client) -> httpx.Response:
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hello"}]}
    return http.post("v1/chat/completions", json={**body, "max_tokens": 8})


def search(http: httpx.Client) -> httpx.Response:
    return http.post("v1/indexes/shop/search", json={"query": "flour and an oven", "k": 2})


def speech(http: httpx.Client) -> httpx.Response:
    body = {"model": "tiny-audio", "input": "Hi", "response_format": "pcm", "seed": 2}
    return http.post("v1/audio/speech", json=body)


def test_twenty_clients_meet_nothing_but_429(tmp_path: Path) -> None:
    models = served.models(tmp_path, waiting=3)
    service = Service(models, served.indexes(tmp_path, served.encoder(tmp_path)))
    asks: dict[str, load.Ask] = {"chat": chat, "search": search, "speech": speech}
    with served.serving(service) as address:
        seen = load.rush(address, asks, clients=20, seconds=3)
        assert seen.lost == []
        assert {s for kind in seen.statuses.values() for s in kind} <= {200, 429}
        assert all(seen.statuses[kind][200] > 0 for kind in asks), seen.statuses
        assert seen.statuses["chat"][429] + seen.statuses["speech"][429] > 0  # it was a crowd
        end = time.monotonic() + 30  # a place is given back just after the last byte
        while any(lane.jobs for lane in service.lanes):
            assert time.monotonic() < end
            time.sleep(0.01)
        with httpx.Client(base_url=address) as http:
            assert chat(http).status_code == search(http).status_code == 200


@contextmanager
def started(index: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The real command, in a process of its own."""
    command = [
        sys.executable, "-m", "apps.cli", "serve", "--port", str(port), "--index", str(index),
        "--models", "echo", "--dtype", "fp32",
    ]  # fmt: skip
    child = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if "Ctrl-C" in line:
                break
        else:
            raise AssertionError("the server ended before it was ready")
        yield child
    finally:
        child.kill()
        child.communicate()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def add(http: httpx.Client, number: int) -> httpx.Response:
    text = f"Document {number} tells of the number {number}. " * 20
    return http.post(
        "v1/indexes/my/documents", json={"upsert": [{"id": f"{number}", "text": text}]}
    )


def test_killed_and_started_again_no_index_is_harmed(tmp_path: Path) -> None:
    """What was answered is there, nothing is damaged, and the next server goes on with it."""
    index, port = tmp_path / "my.index", free_port()
    done: list[int] = []

    def write(address: str) -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            for number in range(1_000_000):
                try:
                    if add(http, number).status_code == 200:
                        done.append(number)
                except httpx.HTTPError:
                    return

    with started(index, port) as child:
        writer = threading.Thread(target=write, args=(f"http://127.0.0.1:{port}/",))
        writer.start()
        while len(done) < 3:
            assert writer.is_alive()
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        writer.join()
    with retrieval.open(index) as opened:
        assert opened.check() == []
        assert {str(n) for n in done} <= {s.source for s in opened.sources()}

    with started(index, port) as child:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/", timeout=60) as http:
            found = http.post("v1/indexes/my/search", json={"query": "the number 1", "k": 3})
            assert found.status_code == 200 and found.json()["hits"]
            assert add(http, 5_000).status_code == 200

            answers: list[int] = []
            message = {"role": "user", "content": "x " * 5_000}
            slow = {"model": "echo", "messages": [message], "max_tokens": 5_000}
            asked = threading.Thread(
                target=lambda: answers.append(
                    http.post("v1/chat/completions", json=slow).status_code
                )
            )
            asked.start()
            while 'lane="echo"} 1' not in http.get("metrics").text:
                assert asked.is_alive()
            child.send_signal(signal.SIGTERM)  # what was begun is finished
            asked.join()
            assert answers == [200]
        assert child.wait(30) == 130
    with retrieval.open(index) as opened:
        assert opened.check() == []
