"""Measures a late-interaction checkpoint on the held-out collections: one table, for its card.

    python recipes/measure_colbert.py --data DIR --model runs/nano_colbert/checkpoint --write

Columns: the floor (the same shape, a random vector for each word), BM25 (k1 1.2, b 0.75, light
stemming, stop words), then lexical, colbert and hybrid through a real index. nDCG@10 with a 95 %
bootstrap interval over the queries.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
import pytrec_eval
import Stemmer
import torch
from nano_colbert_heldout import Collection, collections, other_domain
from nano_colbert_model import NanoColbert, save_folder
from tokenizers import Tokenizer

import retrieval
from lfm2_mm.config import BackboneConfig
from lfm2_mm.weights import read_json
from retrieval.fusion import Fusion

DEPTH = 100
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
Ranker = Callable[[str], Sequence[str]]  # query -> document names, best first


def bm25(collection: Collection) -> Ranker:
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str]) -> list[list[str]]:
        found = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=False,
                               show_progress=False)  # fmt: skip
        return [words or ["?"] for words in found]

    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(tokens(list(collection.corpus.values())), show_progress=False)
    names = list(collection.corpus)

    def rank(query: str) -> list[str]:
        scores = index.get_scores(tokens([query])[0])
        order = np.argsort(-scores, kind="stable")[:DEPTH]
        return [names[i] for i in order if scores[i] > 0]

    return rank


def per_query(collection: Collection, rank: Ranker) -> np.ndarray:
    """nDCG@10 of each query, by trec_eval."""
    judge = pytrec_eval.RelevanceEvaluator(collection.judgements, {"ndcg_cut_10"})
    runs = {
        name: {document: float(-place) for place, document in enumerate(rank(query))}
        for name, query in collection.queries.items()
    }
    found = judge.evaluate(runs)
    return np.array([found[name]["ndcg_cut_10"] for name in collection.queries])


def interval(values: np.ndarray, rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, seeded."""
    draws = np.random.default_rng(0).integers(0, len(values), (rounds, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def untrained(model: Path, folder: Path) -> Path:
    """A checkpoint of the same shape and tokenizer whose words are random vectors: the floor."""
    config = BackboneConfig.from_json(read_json(model / "config.json"))
    dense = read_json(model / "1_Dense/config.json")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    colbert = NanoColbert(config, dense["out_features"])
    table = torch.randn(
        config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    colbert.start_from(table)
    save_folder(colbert, tokenizer, folder)
    return folder


def measure(
    collection: Collection, model: Path, floor: Path, fusion: Fusion | None, dtype: str
) -> dict[str, np.ndarray]:
    """Column -> nDCG@10 of each query."""
    found = {"BM25": per_query(collection, bm25(collection))}
    rows = [(name, text, "") for name, text in collection.corpus.items()]
    for checkpoint, modes in ((floor, ("floor",)), (model, ("colbert", "hybrid", "lexical"))):
        with (
            tempfile.TemporaryDirectory(prefix="measure-") as place,
            retrieval.open(place, model=checkpoint, create=True, dtype=dtype) as index,
        ):
            index.add_texts(rows)
            for mode in modes:
                found[mode] = per_query(collection, through(index, mode, fusion))
    return found


def through(index: retrieval.Index, mode: str, fusion: Fusion | None) -> Ranker:
    way = "colbert" if mode == "floor" else mode
    return lambda query: [name for name, _ in index.rank(query, DEPTH, way, fusion=fusion)]


def table(results: dict[str, dict[str, np.ndarray]]) -> str:
    """Markdown: one row for each collection, then the means and their part of BM25."""
    columns = ["floor", "BM25", "lexical", "colbert", "hybrid"]
    lines = ["| collection | queries | " + " | ".join(columns) + " |",
             "|---|---|" + "---|" * len(columns)]  # fmt: skip
    for name, found in results.items():
        cells = [cell(found[column]) for column in columns]
        lines.append(f"| {name} | {len(found['BM25'])} | " + " | ".join(cells) + " |")
    means = {c: np.mean([found[c].mean() for found in results.values()]) for c in columns}
    lines.append("| mean | | " + " | ".join(f"{means[c]:.3f}" for c in columns) + " |")
    parts = [f"{means[c] / means['BM25']:.2f}" for c in columns]
    lines.append("| mean, part of BM25's | | " + " | ".join(parts) + " |")
    return "\n".join(lines)


def cell(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{values.mean():.3f} ({low:.2f}–{high:.2f})"


def write_into(card: Path, text: str) -> None:
    """Replaces what stands between the two marks of the card."""
    content = card.read_text(encoding="utf-8")
    before, rest = content.split(BEGIN)
    after = rest.split(END)[1]
    card.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8", newline="\n")


def main(arguments: Iterable[str] | None = None) -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--model", type=Path, default=Path("lfm2_mm/assets/nano_colbert"))
    words.add_argument("--queries", type=int, default=400, help="at most, of each collection")
    words.add_argument("--weight", type=float, help="share of colbert in hybrid mode")
    words.add_argument("--dtype", default="fp32", help="fp32, bf16, int8 or auto")
    words.add_argument("--only", nargs="*", help="names of collections")
    words.add_argument("--other", nargs="*", help="instead: docstrings of these libraries")
    words.add_argument("--write-beir", type=Path, help="only write the collections, to this folder")
    words.add_argument("--write", action="store_true", help="write the table into the model's card")
    args = words.parse_args(arguments)
    if args.other:
        every = [other_domain(library, args.queries) for library in args.other]
    else:
        every = collections(args.data, args.queries)
    chosen = [c for c in every if not args.only or c.name in args.only]
    if args.write_beir:
        for collection in chosen:
            collection.write(args.write_beir / collection.name)
        return
    fusion = None if args.weight is None else Fusion(weight=args.weight)
    results = {}
    with tempfile.TemporaryDirectory(prefix="floor-") as folder:
        floor = untrained(args.model, Path(folder) / "floor")
        for collection in chosen:
            results[collection.name] = measure(collection, args.model, floor, fusion, args.dtype)
            shown = {c: round(float(v.mean()), 3) for c, v in results[collection.name].items()}
            print(collection.name, shown, flush=True)
    text = table(results)
    print(text)
    if args.write:
        digest = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()
        note = f"Measured with the weights whose sha256 is `{digest}`."
        write_into(args.model / "MODEL_CARD.md", f"{text}\n\n{note}")


if __name__ == "__main__":
    main()
