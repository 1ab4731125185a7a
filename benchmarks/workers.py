"""Encoding throughput of one worker and of two: the same files, each worker one thread.

python -m benchmarks.workers --documents 400
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import retrieval
from retrieval import parallel, shards
from retrieval.processes import Processes

WORDS = 150  # of a document


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--documents", type=int, default=400)
    asked.add_argument("--model", default="nano-colbert")
    args = asked.parse_args()
    shards.SHARD_FILES = max(1, args.documents // 8)
    with tempfile.TemporaryDirectory() as place:
        files = Path(place) / "files"
        files.mkdir()
        write(files, args.documents)
        print(f"load {os.getloadavg()[0]:.1f} at the start; starting the workers is counted")
        print("workers   seconds   documents/s   tokens/s")
        for count in (1, 2, 1, 2):
            folder = Path(place) / f"{count}-{time.monotonic_ns()}"
            with retrieval.open(folder, model=args.model, create=True) as index:
                start = time.perf_counter()
                report = parallel.update(
                    index, [files], lambda s, n=count: Processes(n, s), folder.with_suffix(".parts")
                )
                took = time.perf_counter() - start
            print(
                f"{count:7} {took:9.1f} {report.documents / took:13.1f}"
                f" {report.tokens / took:10.0f}",
                flush=True,
            )


def write(folder: Path, count: int) -> None:
    """Texts of made words: what an encoder's speed depends on is their length."""
    rng = np.random.default_rng(0)
    common = ("the", "of", "search", "index", "model", "token", "page", "file", "word", "time")
    for number in range(count):
        (folder / f"{number:05d}.txt").write_text(" ".join(rng.choice(common, WORDS)))


if __name__ == "__main__":
    main()
