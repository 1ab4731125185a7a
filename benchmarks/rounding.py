"""What rounding weights costs in quality, on the trained checkpoints that are bundled.

    python -m benchmarks.rounding DIR      # some minutes; DIR: a BEIR-style collection

nano-colbert: the ranking of DIR by MaxSim alone, and how far token vectors move. nano-vl: the
logits of the next token after text of its own kind (its answers as they begin), against float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from lfm2_mm.backbone import Backbone
from lfm2_mm.checkpoint import locate
from lfm2_mm.prompt import ChatTokenizer
from lfm2_mm.types import Message
from retrieval.encoder import open_encoder
from retrieval.evaluation import read_corpus, read_qrels, read_queries
from retrieval.scoring import maxsim

DTYPES = ("fp32", "bf16", "int8", "int4")
TOP = 10
TEXTS = (
    "There are two red circles and a blue square.",
    "The picture shows the word harbour in large letters.",
    "The green triangle is to the left of the yellow star.",
    "The bar chart has four bars; the second is the highest.",
    "It says: open from nine to five.",
)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("collection", type=Path)
    asked.add_argument("--documents", type=int, default=400)
    asked.add_argument("--queries", type=int, default=200)
    args = asked.parse_args()
    colbert(args.collection, args.documents, args.queries)
    language()


def colbert(collection: Path, documents: int, count: int) -> None:
    """Documents beyond the number are left out, and queries whose answers were."""
    qrels = read_qrels(collection)
    corpus = [(name, text) for name, text, _ in read_corpus(collection)][:documents]
    place = {name: number for number, (name, _) in enumerate(corpus)}
    relevant = {q: {place[d] for d in found if d in place} for q, found in qrels.items()}
    queries = {q: t for q, t in read_queries(collection, qrels).items() if relevant[q]}
    queries = dict(list(queries.items())[:count])
    print(f"nano-colbert, {len(corpus)} documents, {len(queries)} queries")
    print(f"{'':6} {'reciprocal rank':>16} {'ten best kept':>14} {'vector error':>13}")
    exact: list[np.ndarray] = []
    for dtype in DTYPES:
        encoder = open_encoder("nano-colbert", device="cpu", dtype=dtype)
        vectors = encoder.encode_documents([text for _, text in corpus])
        bounds = np.cumsum([0, *(len(d) for d in vectors)])
        packed = np.concatenate(vectors)
        asked = encoder.encode_queries(list(queries.values()))
        orders = [np.argsort(-maxsim(query, packed, bounds)).tolist() for query in asked]
        if dtype == DTYPES[0]:
            exact, whole = orders, packed
        pairs = zip(orders, exact, strict=True)
        kept = np.mean([len({*a[:TOP]} & {*b[:TOP]}) / TOP for a, b in pairs])
        first = [
            1 + min(i for i, d in enumerate(o) if d in relevant[q])
            for o, q in zip(orders, queries, strict=True)
        ]
        moved = np.linalg.norm(packed - whole, axis=1).mean()
        print(f"{dtype:6} {np.mean(1 / np.array(first)):16.4f} {kept:14.3f} {moved:13.4f}")


def language() -> None:
    folder = locate("nano-vl", offline=True)
    tokenizer = ChatTokenizer(folder)
    print(f"\nnano-vl's language model, {len(TEXTS)} answers")
    print(f"{'':6} {'logits error':>13} {'divergence':>11} {'same likeliest':>15}")
    exact: list[torch.Tensor] = []
    for dtype in DTYPES:
        backbone = Backbone.open(folder, device="cpu", dtype=dtype)
        found = []
        for text in TEXTS:
            messages = [Message.user("What is in the picture?"), Message.assistant(text)]
            ids = torch.tensor([tokenizer.render(messages).ids])
            hidden, _ = backbone.step(backbone.embed(ids))
            found.append(backbone.logits(hidden)[0].float())
        exact = exact or found
        mine, theirs = torch.cat(found), torch.cat(exact)
        error = ((mine - theirs).norm() / theirs.norm()).item()
        wanted, got = theirs.log_softmax(-1), mine.log_softmax(-1)
        divergence = (wanted.exp() * (wanted - got)).sum(-1).mean().item()
        same = (mine.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        print(f"{dtype:6} {error:13.4f} {divergence:11.5f} {same:15.3f}")


if __name__ == "__main__":
    main()
