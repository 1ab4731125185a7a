"""MaxSim and search beside what people use today, each engine in a process of its own.

Two tables: scoring 1,000 documents for one query ("rerank"), and finding the best 10 of many
("search"). The vectors are made, as apps.bench_retrieval.Clustered tells. Truth is exact MaxSim in
float32.

    python -m benchmarks.retrieval rerank
    python -m benchmarks.retrieval search --documents 3000

Building takes minutes and may share the machine, searching takes seconds and must not: with --keep
FOLDER indexes stay where they are, --stage build stops there, and a later run searches them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

THREADS = "2"  # before any library counts the cores
for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, THREADS)

import numpy as np  # noqa: E402

from apps.bench_retrieval import DIM, Clustered  # noqa: E402
from benchmarks import retrieval_engines as engines  # noqa: E402
from benchmarks import store_engines  # noqa: E402
from benchmarks.peers import Peer, PeerDied  # noqa: E402

RERANK_TOKENS = (180, 301)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("table", choices=["rerank", "search"])
    asked.add_argument("--documents", type=int, default=3000)
    asked.add_argument("--queries", type=int, default=60)
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument("--patience", type=float, default=600, help="seconds an index may take")
    asked.add_argument("--only", default="", help="names or beginnings of names, with commas")
    asked.add_argument("--keep", type=Path, help="folder for indexes: what is there is not rebuilt")
    asked.add_argument("--stage", choices=["build", "search"], default="search")
    args = asked.parse_args()
    print(f"{processor()}, {THREADS} threads, load {os.getloadavg()[0]:.1f} at the start")
    if args.table == "rerank":
        rerank(chosen(engines.RERANK, args.only), args.rounds)
    else:
        search(chosen({**engines.SEARCH, **store_engines.STORES}, args.only), args)


def chosen(table: dict[str, Any], only: str) -> dict[str, Any]:
    names = [name for name in only.split(",") if name]
    return {n: e for n, e in table.items() if not names or any(n.startswith(o) for o in names)}


def rerank(table: dict[str, Any], rounds: int) -> None:
    """Rounds in which each engine scores once, so that a busy moment strikes all alike."""
    peers = opened({name: (engine, RERANK_TOKENS) for name, engine in table.items()})
    took: dict[str, list[float]] = {name: [] for name in peers}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name, peer in list(peers.items()):
            try:
                seconds, errors[name] = peer.ask()
                took[name].append(1e3 * seconds)
            except PeerDied as why:
                print(f"{name}: {why}")
                del peers[name]
    bare = statistics.median(took["bare int8 product"]) if took.get("bare int8 product") else None
    print("scored by                 median ms   best ms   times the bare product   largest error")
    for name, ms in took.items():
        if ms:
            times = f"{statistics.median(ms) / bare:8.2f}" if bare else "       -"
            error = f"{errors[name]:.4f}" if errors[name] == errors[name] else "-"
            print(f"{name:25} {statistics.median(ms):9.2f} {min(ms):9.2f} {times:>24} {error:>15}")
    for peer in peers.values():
        peer.close()


def search(table: dict[str, Any], args: argparse.Namespace) -> None:
    truth = best(args.documents, args.queries, args.keep)
    print(f"{args.documents:,} documents of 180 to 220 vectors, {args.queries} queries, dim {DIM}")
    print(
        f"{'engine, setting':30}   build s  disk MB  peak MB of build, search  recall@10"
        "   p50 ms   p95 ms"
    )
    for name, engine in table.items():
        with kept(args.keep, f"{name}-{args.documents}") as folder:
            try:
                built = build(engine, folder, args.documents, args.patience)
                told = f"{built['seconds']:9.1f} {built['bytes'] / 1e6:8.0f}"
                told = f"{told} {built['peak'] / 1e6:17.0f},"
                if args.stage == "build":
                    print(f"{name:30} {told}", flush=True)
                    continue
                for setting, row in searched(engine, folder, args, truth):
                    shown = f"{name}, {setting}" if setting else name
                    print(f"{shown:30} {told} {row}", flush=True)
            except PeerDied as why:
                print(f"{name}: {why}", flush=True)


@contextlib.contextmanager
def kept(root: Path | None, name: str) -> Iterator[Path]:
    """A folder of an engine's own: one that stays, or one that goes."""
    if root is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    folder = root / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def build(engine: Any, folder: Path, documents: int, patience: float) -> dict[str, float]:
    """What building took; an index that is there already is not built again."""
    told = folder / "built.json"
    if not told.exists():
        (folder / "index").mkdir(exist_ok=True)
        builder = Peer(engine, str(folder / "index"), documents, "build", patience=patience)
        try:
            told.write_text(json.dumps(builder.answer()), encoding="utf-8")
        finally:
            builder.close()
    found: dict[str, float] = json.loads(told.read_text(encoding="utf-8"))
    return found


def searched(
    engine: Any, folder: Path, args: argparse.Namespace, truth: np.ndarray
) -> Iterator[tuple[str, str]]:
    """Searches in another process than the one that built, as a user does on another day."""
    reader = Peer(engine, str(folder / "index"), args.documents, "search", patience=args.patience)
    try:
        for setting in reader.answer():
            found, took, peak = [], [], 0.0
            for query in range(args.queries):
                seconds, ids, peak = reader.ask(setting, query)
                took.append(1e3 * seconds)
                found.append(ids)
            recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
            p50, p95 = np.percentile(took, [50, 95])
            yield setting, f"{peak / 1e6:6.0f} {recall:10.3f} {p50:8.1f} {p95:8.1f}"
    finally:
        reader.close()


def best(documents: int, queries: int, root: Path | None) -> np.ndarray:
    """Truth, kept from one run to the next: it takes longer than what is measured."""
    there = (root or Path(tempfile.gettempdir())) / f"clustered-{documents}-{queries}.npy"
    if not there.exists():
        print("exact MaxSim over all, for the truth", file=sys.stderr)
        data = Clustered(documents)
        there.parent.mkdir(parents=True, exist_ok=True)
        np.save(there, data.best([data.query(number) for number in range(queries)]))
    return np.load(there)


def opened(wanted: dict[str, tuple[Any, Any]]) -> dict[str, Peer]:
    peers = {}
    for name, (engine, argument) in wanted.items():
        peer = Peer(engine, argument)
        try:
            peer.answer()
            peers[name] = peer
        except PeerDied as why:
            print(f"{name}: {why}")
    return peers


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    return next((li.partition(": ")[2] for li in lines if li.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
