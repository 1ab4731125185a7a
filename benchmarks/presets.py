"""What compression costs on a real collection: bytes, nDCG@10, and agreement with float32.

Reads a BEIR-style folder (corpus.jsonl, queries.jsonl, qrels). Every ranking is MaxSim alone.
Prints one table: python -m benchmarks.presets DIR --model nano-colbert
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrieval.codecs import CODECS
from retrieval.encoder import open_encoder
from retrieval.estimates import estimates
from retrieval.evaluation import read_corpus, read_qrels, read_queries
from retrieval.pooling import pool
from retrieval.scoring import maxsim

TOP = 10


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("collection", type=Path)
    asked.add_argument("--model", default="nano-colbert")
    asked.add_argument("--queries", type=int, default=300)
    args = asked.parse_args()
    encoder = open_encoder(args.model)
    qrels = read_qrels(args.collection)
    queries = dict(list(read_queries(args.collection, qrels).items())[: args.queries])
    corpus = [(name, text) for name, text, _ in read_corpus(args.collection)]
    print("encoding", len(corpus), "documents,", len(queries), "queries", file=sys.stderr)
    names = [name for name, _ in corpus]
    documents = encoder.encode_documents([text for _, text in corpus])
    vectors = encoder.encode_queries(list(queries.values()))
    relevant = [{names.index(d) for d, grade in qrels[q].items() if grade > 0 and d in set(names)}
                for q in queries]  # fmt: skip
    tokens = sum(len(d) for d in documents) / len(documents)
    print(f"{args.collection.name}: {len(names):,} documents of {tokens:.0f} "
          f"tokens, {len(queries):,} queries, {encoder.name}, dim {encoder.dim}")  # fmt: skip
    print(
        "stored    pooled  bytes/token  bytes/document  nDCG@10  top-10 kept  same first  ms/query"
    )
    for row in measured(documents, vectors, relevant, encoder.dim):
        print(row, flush=True)


def measured(
    documents: list[np.ndarray], queries: list[np.ndarray], relevant: list[set[int]], dim: int
) -> Iterator[str]:
    bounds = np.cumsum([0, *(len(d) for d in documents)])
    packed = np.concatenate(documents)
    exact = [ranked(maxsim(query, packed, bounds)) for query in queries]
    yield line(
        "float32", 1, 4 * dim, 4 * dim * len(packed), documents, exact, exact, relevant, None
    )
    for factor in (1, 2, 3):
        pooled = [pool(document, factor) for document in documents]
        bounds = np.cumsum([0, *(len(d) for d in pooled)])
        for name, codec in CODECS.items():
            if name == "float16" and factor > 1:
                continue  # decoded for every query: slow, and no preset of size
            rows = np.frombuffer(codec.encode(np.concatenate(pooled)), np.uint8)
            rows = rows.reshape(bounds[-1], -1)
            codec.scores(queries[0], rows, bounds[:-1], bounds[1:])
            start = time.perf_counter()
            found = [ranked(codec.scores(q, rows, bounds[:-1], bounds[1:])) for q in queries]
            seconds = (time.perf_counter() - start) / len(queries)
            width = codec.row_bytes(dim)
            yield line(name, factor, width, rows.nbytes, documents, found, exact, relevant, seconds)
        if factor == 1:
            yield from proposed(packed, bounds, queries, exact, dim)


def proposed(
    packed: np.ndarray, bounds: np.ndarray, queries: list[np.ndarray], exact: list[list[int]],
    dim: int,
) -> Iterator[str]:  # fmt: skip
    """How many of the exact top 10 are among the best estimates."""
    codec = CODECS["int8"]
    rows = np.frombuffer(codec.encode(packed), np.uint8).reshape(bounds[-1], -1)
    made = estimates(codec, rows, bounds, dim)
    everything = np.arange(len(bounds) - 1)
    kept: dict[int, list[float]] = {count: [] for count in (20, 50, 100, 200)}
    for query, best in zip(queries, exact, strict=True):
        order = np.argsort(-made.scores(query, bounds[:-1], bounds[1:], everything))
        for count, found in kept.items():
            found.append(len(set(best) & set(order[:count].tolist())) / TOP)
    told = ", ".join(f"{np.mean(found):.3f} in {count}" for count, found in kept.items())
    yield f"  estimates ({len(made.centroids)} centroids): the exact top 10 among the best: {told}"


def ranked(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable")[:TOP].tolist()


def line(
    name: str, factor: int, width: int, total: int, documents: list[np.ndarray],
    found: list[list[int]], exact: list[list[int]], relevant: list[set[int]],
    seconds: float | None,
) -> str:  # fmt: skip
    gains = [sum(1 / np.log2(2 + place) for place, d in enumerate(ids) if d in wanted)
             / sum(1 / np.log2(2 + place) for place in range(min(len(wanted), TOP)) or [0])
             for ids, wanted in zip(found, relevant, strict=True)]  # fmt: skip
    kept = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(found, exact, strict=True)])
    first = np.mean([a[0] == b[0] for a, b in zip(found, exact, strict=True)])
    ms = f"{1e3 * seconds:9.2f}" if seconds else "        -"
    return (f"{name:9} {factor:6} {width:12} {total / len(documents):15,.0f} {np.mean(gains):8.4f} "
            f"{kept:12.3f} {first:11.3f} {ms}")  # fmt: skip


if __name__ == "__main__":
    main()
