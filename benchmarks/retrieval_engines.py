"""The engines that benchmarks/retrieval.py compares. Each function runs in a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apps.bench_retrieval import DIM, Clustered

# --- rerank: each gives a function that scores once and tells its seconds and its largest error --


class Thousand:
    """1,000 documents, a query, and the scores in float32."""

    def __init__(self, tokens: tuple[int, int]) -> None:
        rng = np.random.default_rng(0)
        self.bounds = np.concatenate([[0], np.cumsum(rng.integers(*tokens, 1000))])
        self.packed = _unit(rng, int(self.bounds[-1]))
        self.query = _unit(rng, 32)
        self.exact = np.maximum.reduceat(self.packed @ self.query.T, self.bounds[:-1], axis=0).sum(
            axis=1
        )

    @property
    def documents(self) -> list[np.ndarray]:
        return np.split(self.packed, self.bounds[1:-1])

    def measure(self, score: Callable[[], Any]) -> tuple[Callable[[], tuple[float, float]], None]:
        score()

        def once() -> tuple[float, float]:
            start = time.perf_counter()
            scores = score()
            seconds = time.perf_counter() - start
            if scores is None:
                return seconds, float("nan")
            return seconds, float(np.abs(np.asarray(scores) - self.exact).max())

        return once, None


def _codec(name: str, tokens: tuple[int, int]) -> Any:
    from retrieval.codecs import CODECS

    data, codec = Thousand(tokens), CODECS[name]
    rows = np.frombuffer(codec.encode(data.packed), np.uint8).reshape(len(data.packed), -1)
    return data.measure(lambda: codec.scores(data.query, rows, data.bounds[:-1], data.bounds[1:]))


def ours_int8(tokens: tuple[int, int]) -> Any:
    return _codec("int8", tokens)


def ours_4bit(tokens: tuple[int, int]) -> Any:
    return _codec("4bit", tokens)


def ours_2bit(tokens: tuple[int, int]) -> Any:
    return _codec("2bit", tokens)


def ours_float(tokens: tuple[int, int]) -> Any:
    from retrieval import maxsim

    data = Thousand(tokens)
    return data.measure(lambda: maxsim(data.query, data.packed, data.bounds))


def product_int8(tokens: tuple[int, int]) -> Any:
    """The products alone, with no maxima: what the arithmetic takes."""
    import torch

    data = Thousand(tokens)
    packed = torch.from_numpy(np.rint(127 * data.packed).astype(np.int8))
    query = torch.from_numpy(np.rint(127 * data.query).astype(np.int8)).T

    def score() -> None:
        torch._int_mm(packed, query)

    return data.measure(score)


def torch_int8(tokens: tuple[int, int]) -> Any:
    """torch's int8 product and segmented maxima."""
    import torch

    data = Thousand(tokens)
    packed = torch.from_numpy(np.rint(127 * data.packed).astype(np.int8))
    query = torch.from_numpy(np.rint(127 * data.query).astype(np.int8)).T
    lengths = torch.from_numpy(np.diff(data.bounds))

    def score() -> np.ndarray:
        products = torch._int_mm(packed, query).float()
        best = torch.segment_reduce(products, "max", lengths=lengths, axis=0)
        return best.sum(dim=1).numpy() / np.float32(127 * 127)

    return data.measure(score)


def numpy_float(tokens: tuple[int, int]) -> Any:
    data = Thousand(tokens)
    turned = np.ascontiguousarray(data.query.T)

    def score() -> np.ndarray:
        return np.maximum.reduceat(data.packed @ turned, data.bounds[:-1], axis=0).sum(axis=1)

    return data.measure(score)


def pylate_rank(tokens: tuple[int, int]) -> Any:
    from pylate import rank

    data = Thousand(tokens)
    ids, documents = [list(range(1000))], [data.documents]

    def score() -> np.ndarray:
        (found,) = rank.rerank(ids, [data.query], documents)
        scores = np.empty(1000, dtype=np.float32)
        scores[[hit["id"] for hit in found]] = [hit["score"] for hit in found]
        return scores

    return data.measure(score)


def maxsim_cpu(tokens: tuple[int, int]) -> Any:
    import maxsim_cpu as peer

    data = Thousand(tokens)
    documents = [np.ascontiguousarray(document) for document in data.documents]
    return data.measure(lambda: peer.maxsim_scores_variable(data.query, documents))


RERANK = {
    "bare int8 product": product_int8,
    "ours, int8 rows": ours_int8,
    "ours, 4bit rows": ours_4bit,
    "ours, 2bit rows": ours_2bit,
    "ours, float32": ours_float,
    "torch int8 and maxima": torch_int8,
    "numpy float32": numpy_float,
    "maxsim-cpu": maxsim_cpu,
    "pylate.rank": pylate_rank,
}

# --- search: each builds in a folder and tells what that took, or opens it and answers queries ---


def built(folder: str, build: Callable[[], None]) -> dict[str, float]:
    """What building took: seconds, bytes on disk, memory at the height."""
    with Peak() as peak:
        start = time.perf_counter()
        build()
        seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"seconds": seconds, "bytes": size, "peak": peak.grown}


def answering(
    data: Clustered, settings: list[str], find: Callable[[str, np.ndarray], list[int]]
) -> Any:
    """Queries are asked by number; memory is told beyond that before the index was opened."""
    peak = Peak()
    peak.__enter__()

    def answer(setting: str, number: int) -> tuple[float, list[int], float]:
        query = data.query(number)
        if number == 0:
            find(setting, query)  # what is only done once
        start = time.perf_counter()
        ids = find(setting, query)
        return time.perf_counter() - start, [int(i) for i in ids], peak.grown

    return answer, settings


def _ours(codec: str, folder: str, documents: int, what: str) -> Any:
    from retrieval.candidates import Candidates
    from retrieval.segments import Segment

    data = Clustered(documents)
    if what == "build":
        entries: list[Any] = []

        def build() -> None:
            entries.extend(s.entry for s in data.segments(Path(folder), codec))

        told = built(folder, build)
        _write_entries(folder, entries)
        return None, told
    opened: list[Any] = []

    def find(setting: str, query: np.ndarray) -> list[int]:
        if not opened:
            opened.extend(Segment(Path(folder), e, DIM) for e in _read_entries(folder))
        effort = int(setting.split()[-1]) if setting else None
        return Candidates(opened, effort).candidates(query, 10)[0].tolist()

    settings = [
        "",
        "effort 512",
        "effort 4096",
        f"effort {documents}",
    ]  # the last scores all of them
    return answering(data, settings[: 4 if documents > 5000 else 1], find)


def _write_entries(folder: str, entries: list[Any]) -> None:
    from retrieval.storage import Manifest, publish

    publish(Path(folder), Manifest(generation=1, segments=tuple(entries)))


def _read_entries(folder: str) -> Any:
    from retrieval.storage import load

    return load(Path(folder)).segments


def search_int8(folder: str, documents: int, what: str) -> Any:
    return _ours("int8", folder, documents, what)


def search_4bit(folder: str, documents: int, what: str) -> Any:
    return _ours("4bit", folder, documents, what)


def search_2bit(folder: str, documents: int, what: str) -> Any:
    return _ours("2bit", folder, documents, what)


def faiss_ivfpq(folder: str, documents: int, what: str) -> Any:
    """IVF-PQ32x4fs over tokens, missing ones imputed as XTR does, the best rescored as ours are."""
    import faiss

    from retrieval.codecs import CODECS

    faiss.omp_set_num_threads(2)
    data, codec = Clustered(documents), CODECS["int8"]
    index_path, rows_path = f"{folder}/tokens.faiss", f"{folder}/rows"
    tokens = int(data.bounds[-1])
    if what == "build":

        def build() -> None:
            lists = round(4 * tokens**0.5)
            index = faiss.index_factory(DIM, f"IVF{lists},PQ32x4fs", faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid = 64
            wanted = min(documents, -(-64 * lists // 200))  # documents for 64 tokens a list
            chosen = np.random.default_rng(0).choice(documents, wanted, replace=False)
            index.train(np.concatenate([data.document(int(d)) for d in chosen]))
            with Path(rows_path).open("wb") as file:
                for first in range(0, documents, 500):
                    some = [data.document(d) for d in range(first, min(first + 500, documents))]
                    index.add(np.concatenate(some))
                    file.write(codec.encode(np.concatenate(some)))
            faiss.write_index(index, index_path)

        return None, built(folder, build)
    opened: list[Any] = []
    owner = np.repeat(np.arange(documents, dtype=np.int32), np.diff(data.bounds))

    def find(setting: str, query: np.ndarray) -> list[int]:
        if not opened:
            rows = np.memmap(rows_path, np.uint8, "r", shape=(tokens, codec.row_bytes(DIM)))
            opened.extend([faiss.read_index(index_path), rows])
        index, rows = opened
        index.nprobe = 16
        scores, ids = index.search(query, 2000)
        total = np.zeros(documents, dtype=np.float32)
        for row, places in zip(scores, ids, strict=True):
            there = places >= 0
            floor = row[there].min()
            best = np.full(documents, floor, dtype=np.float32)
            np.maximum.at(best, owner[places[there]], row[there])
            total += best
        count = int(setting.split()[-1])
        kept = np.sort(np.argpartition(-total, count - 1)[:count])
        exact = codec.scores(query, rows, data.bounds[kept], data.bounds[kept + 1])
        return kept[np.argsort(-exact)[:10]].tolist()

    return answering(data, ["keep 300", "keep 1000"], find)


def pylate_plaid(folder: str, documents: int, what: str) -> Any:
    from pylate import indexes

    def open_index(settings: dict[str, Any]) -> Any:
        return indexes.PLAID(
            folder, "peer", override=what == "build", num_threads=2, show_progress=False,
            device="cpu", **settings,
        )  # fmt: skip

    return _pylate(
        open_index, folder, documents, what, {"": {}, "full 1024": {"n_full_scores": 1024}}
    )


def pylate_warp(folder: str, documents: int, what: str) -> Any:
    from pylate import indexes

    def open_index(settings: dict[str, Any]) -> Any:
        return indexes.WARP(
            folder, "peer", override=what == "build", num_threads=2, show_progress=False,
            device="cpu", **settings,
        )  # fmt: skip

    return _pylate(open_index, folder, documents, what, {"": {}, "probe 64": {"n_ivf_probe": 64}})


def _pylate(
    open_index: Callable[[dict[str, Any]], Any], folder: str, documents: int, what: str,
    settings: dict[str, dict[str, Any]],
) -> Any:  # fmt: skip
    data = Clustered(documents)
    if what == "build":
        vectors = [data.document(d) for d in range(documents)]

        def build() -> None:
            ids = [str(d) for d in range(documents)]
            open_index({}).add_documents(documents_ids=ids, documents_embeddings=vectors)

        return None, built(folder, build)
    opened: dict[str, Any] = {}

    def find(setting: str, query: np.ndarray) -> list[int]:
        if setting not in opened:
            opened[setting] = open_index(settings[setting])
        (hits,) = opened[setting](query[None], k=10)
        return [int(hit["id"]) for hit in hits]

    return answering(data, list(settings), find)


SEARCH = {
    "ours int8": search_int8,
    "ours 4bit": search_4bit,
    "ours 2bit": search_2bit,
    "faiss IVF-PQ": faiss_ivfpq,
    "xtr-warp-rs": pylate_warp,
    "fast-plaid": pylate_plaid,
}


class Peak:
    """The most memory that the process held, beyond what it held at the beginning (Linux)."""

    def __init__(self) -> None:
        self._before = self._most = resident()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, resident())

    @property
    def grown(self) -> int:
        self._most = max(self._most, resident())
        return self._most - self._before


def resident() -> int:
    """Bytes of memory, mapped files included."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.standard_normal((count, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
