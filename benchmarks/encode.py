"""Encoding documents at the shape of LFM2-ColBERT-350M: our encoder beside PyLate, in one run.

    python -m benchmarks.encode                # about 5 minutes on two cores, 6 GB of memory

Weights are random (nothing is downloaded), so speed is that of the real checkpoint and the ranking
columns compare arithmetic alone. Rounds are interleaved: a busy machine slows every row alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from tests import tiny

SHAPE = {
    "vocab_size": 64_402,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "block_ff_dim": 6656,
    "block_multiple_of": 256,
    "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
}
Encode = Callable[[Sequence[str], bool], list[np.ndarray]]  # texts, is_query -> vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=300, help="length of each document")
    parser.add_argument("--documents", type=int, default=8, help="documents of one timed round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranked", type=int, default=60, help="documents of the ranking columns")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny.colbert_folder(
            Path(scratch) / "colbert",
            dim=128,
            colbert={"query_length": 32, "document_length": args.tokens},
            **SHAPE,
        )
        engines = {
            "PyLate fp32 (its default)": pylate(folder, "float32"),
            "PyLate bf16": pylate(folder, "bfloat16"),
            **{f"lfm2-mm {dtype}": ours(folder, dtype) for dtype in ("fp32", "bf16", "int8")},
        }
        seconds = timed(engines, texts(args.documents, args.tokens * 4), args.rounds)
        ranked = rankings(engines, texts(args.ranked, 120))
    report(seconds, ranked, args)


def pylate(folder: Path, dtype: str) -> Encode:
    import torch
    from pylate.models import ColBERT

    model = ColBERT(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts, is_query: model.encode(
        list(texts), is_query=is_query, show_progress_bar=False
    )


def ours(folder: Path, dtype: str) -> Encode:
    from retrieval.encoder import open_encoder

    encoder = open_encoder(folder, device="cpu", dtype=dtype)
    return lambda texts, is_query: (
        encoder.encode_queries(texts) if is_query else encoder.encode_documents(texts)
    )


def texts(count: int, characters: int) -> list[str]:
    """Different documents of about this many characters, cut to a length in tokens later on."""
    words = " ".join(tiny.CORPUS).split()
    random = np.random.default_rng(count)
    return [" ".join(random.choice(words, characters // 3))[:characters] for _ in range(count)]


def timed(engines: dict[str, Encode], documents: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of one pass over `documents`, after a short one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for encode in engines.values():
        encode(documents[:1], False)
    for _ in range(rounds):
        for name, encode in engines.items():
            start = time.perf_counter()
            encode(documents, False)
            taken[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


def rankings(engines: dict[str, Encode], documents: list[str]) -> dict[str, np.ndarray]:
    """MaxSim of some queries over `documents`: (queries, documents) for each engine."""
    scores = {}
    for name, encode in engines.items():
        vectors = encode(documents, False)
        queries = encode(tiny.CORPUS, True)
        scores[name] = np.array([[(q @ d.T).max(1).sum() for d in vectors] for q in queries])
    return scores


def overlap(scores: np.ndarray, reference: np.ndarray, k: int = 10) -> float:
    pairs = zip(np.argsort(-scores)[:, :k], np.argsort(-reference)[:, :k], strict=True)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))


def spearman(scores: np.ndarray, reference: np.ndarray) -> float:
    ranks = [a.argsort(1).argsort(1) for a in (scores, reference)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))


def report(
    seconds: dict[str, float], scores: dict[str, np.ndarray], args: argparse.Namespace
) -> None:
    fp32, bf16 = (seconds[name] for name in list(seconds)[:2])
    reference = next(iter(scores.values()))
    print(f"\n{args.documents} documents of {args.tokens} tokens, median of {args.rounds} rounds")
    print(f"{'':26} docs/s   x fp32   x bf16   overlap@10   Spearman")
    for name, taken in seconds.items():
        print(
            f"{name:26} {args.documents / taken:6.2f} {fp32 / taken:8.2f} {bf16 / taken:8.2f}"
            f" {overlap(scores[name], reference):12.3f} {spearman(scores[name], reference):10.4f}"
        )
    print(f"x: times PyLate's. Ranking: {len(tiny.CORPUS)} queries over {args.ranked} documents")
    print(f"against PyLate fp32. Again: python -m benchmarks.encode --tokens {args.tokens}")


if __name__ == "__main__":
    main()
