"""The HTTP server: start to ready, what HTTP adds to a search, and a crowd of clients.

    python -m benchmarks.server                      # ready, search, a crowd for 30 s
    python -m benchmarks.server --minutes 10         # memory over time, latencies
    python -m benchmarks.server --audio FOLDER       # speech among the requests, too

The index holds the project's own documents. What HTTP adds to a search is the client's time less
that of the library, which the server tells. The crowd asks for chat, pictures, search and speech at
random.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from PIL import Image as Pil

import retrieval
from tests import load

ROOT = Path(__file__).parent.parent
QUERIES = [
    "where do downloaded models go", "how is a crash survived", "what does a picture cost",
    "which threads are used", "how much disk does it take", "recall of the fast path",
]  # fmt: skip


class Server:
    """`lfm2-mm serve` as a process of its own."""

    def __init__(self, index: Path, models: list[str]) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-m", "apps.cli", "serve", "--port", "0", "--index", str(index)]
        if models:
            command += ["--models", ",".join(models)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = next(line for line in self.process.stderr if "Ctrl-C" in line)
        self.ready_s = time.perf_counter() - start
        self.address = line.split(" on ")[1].split()[0]
        # What it logs must be read, or it would wait.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def processor_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def overhead(index: Path, address: str, rounds: int) -> tuple[float, float]:
    """Median seconds that a search takes in the server, and that HTTP adds to it for its client."""
    inside, added = [], []
    with httpx.Client(base_url=address, timeout=120) as http:
        for number in range(rounds + 10):
            body = {"query": QUERIES[number % len(QUERIES)], "k": 10}
            start = time.perf_counter()
            answer = http.post(f"v1/indexes/{index.name}/search", json=body).raise_for_status()
            took = time.perf_counter() - start
            if number >= 10:  # the first warm up
                inside.append(answer.json()["seconds"])
                added.append(took - inside[-1])
    return statistics.median(inside), statistics.median(added)


def asks(index: Path, audio: str | None) -> dict[str, load.Ask]:
    def post(path: str, **body: object) -> load.Ask:
        return lambda http: http.post(path, json=body)

    held = io.BytesIO()
    Pil.fromarray(np.full((128, 128, 3), (200, 30, 30), np.uint8)).save(held, "PNG")
    url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
    look = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]

    def chat(model: str, content: object) -> load.Ask:
        message = {"role": "user", "content": content}
        return post("v1/chat/completions", model=model, messages=[message], max_tokens=40)

    found = {
        "chat (echo)": chat("echo", "say this again, please"),
        "picture (nano-vl)": chat("nano-vl", look),
        "search": post(f"v1/indexes/{index.name}/search", query=QUERIES[0], k=10),
        "rerank 3": post(
            "v1/rerank", model="nano-colbert", query=QUERIES[1], documents=QUERIES[:3]
        ),
    }
    if audio:
        found["speech"] = post("v1/audio/speech", model=audio, input="Good morning.")
    return found


def watched(server: Server, seconds: float, work: Callable[[], load.Seen]) -> load.Seen:
    """`work`, while memory and time are written down twenty times."""
    stop = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while True:
            minute, size = (time.monotonic() - start) / 60, server.megabytes()
            print(f"  {minute:5.1f} min  {size:7.0f} MB", flush=True)
            if stop.wait(seconds / 20):
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return work()
    finally:
        stop.set()
        watching.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--audio", help="a speech checkpoint, by name or folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "docs.index"
        with retrieval.open(index, create=True) as made:
            report = made.update([ROOT / "README.md", ROOT / "docs"])
        server = Server(index, [args.audio] if args.audio else [])
        try:
            cost = f"{server.processor_s():.1f} s of processor, {server.megabytes():.0f} MB"
            print(f"start to ready    {server.ready_s:.1f} s ({cost})")
            inside, added = overhead(index, server.address, args.rounds)
            print(
                f"a search of {report.chunks} passages    {1e3 * inside:.1f} ms, and HTTP adds "
                f"{1e3 * added:.1f} ms"
            )
            audio = Path(args.audio).name if args.audio else None
            seen = watched(
                server,
                60 * args.minutes,
                lambda: load.rush(
                    server.address, asks(index, audio), clients=args.clients,
                    seconds=60 * args.minutes,
                ),
            )  # fmt: skip
            show(seen)
        finally:
            server.stop()


def show(seen: load.Seen) -> None:
    print(f"{'asked for':20} {'answered':>9} {'429':>6} {'other':>6} {'p50 ms':>8} {'p95 ms':>8}")
    for kind, statuses in seen.statuses.items():
        took = sorted(seen.seconds.get(kind, [0.0]))
        other = sum(n for status, n in statuses.items() if status not in (200, 429))
        middle, late = took[len(took) // 2], took[int(0.95 * (len(took) - 1))]
        print(
            f"{kind:20} {statuses[200]:9,} {statuses[429]:6,} {other:6,} {1e3 * middle:8.1f} "
            f"{1e3 * late:8.1f}"
        )
    print(f"connections lost: {len(seen.lost)} {seen.lost[:3] or ''}")


if __name__ == "__main__":
    main()
