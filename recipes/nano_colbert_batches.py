"""Batches of nano-colbert: passages of one source with queries they answer, by seed and step.

Queries are a source's own, or made from the passage: one of its sentences, or some of its words.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from nano_colbert_data import WORD, Passage, Source, sentences

STOP_WORDS = (
    "about after also and are been before between but can could did does during each for from had "
    "has have her him his how into its many may more most not other our over she should some such "
    "than that the their them then there these they this those was were what when where which who "
    "will with would you your"
)
STOP = frozenset(STOP_WORDS.split())
FRAMES = (
    "what is known about {}", "articles that deal with {}", "I am interested in {}", "papers on {}",
    "information about {}", "has anybody studied {}", "please find out about {}", "what are {}",
    "methods and results concerning {}", "a description of {}", "why {}", "the role of {}",
)  # fmt: skip


@dataclass
class Batch:
    source: str
    documents: list[str]
    queries: list[str]
    answers: list[int]  # of each query: the index of its document


@dataclass
class Drawer:
    """Draws batches. `neighbours[source]` (passages, k): what BM25 confuses with each passage."""

    sources: Sequence[Source]
    neighbours: dict[str, np.ndarray]
    synonyms: dict[str, list[str]]
    documents: int = 48
    queries: int = 2  # at most, for each document
    seed: int = 0

    def draw(self, step: int, hard: float) -> Batch:
        """The batch of this step; `hard` is the part of its documents that are neighbours."""
        rng = random.Random(f"{self.seed}/{step}")
        bounds = list(accumulate(source.share for source in self.sources))
        source = self.sources[bisect(bounds, rng.random() * bounds[-1])]
        batch = Batch(source.name, [], [], [])
        for at in self.pick(source, rng, hard):
            self.ask(source, source.passages[at], batch, rng)
        return batch

    def pick(self, source: Source, rng: random.Random, hard: float) -> list[int]:
        """Distinct passages: seeds, each followed by neighbours of its own."""
        total = min(self.documents, len(source.passages))
        near = self.neighbours.get(source.name)
        if near is not None and near.shape[1] == 0:  # a source of one passage
            near = None
        picked: dict[int, None] = {}
        while len(picked) < total:
            at = rng.randrange(len(source.passages))
            picked[at] = None
            while near is not None and rng.random() < hard:
                picked[int(rng.choice(near[at]))] = None
        return list(picked)[:total]

    def ask(self, source: Source, passage: Passage, batch: Batch, rng: random.Random) -> None:
        """Adds a passage and its queries. Half of the time a quoted sentence leaves the passage."""
        text = passage.text
        asked = rng.sample(passage.queries, min(self.queries, len(passage.queries)))
        if source.cloze and (len(asked) < self.queries or rng.random() < 0.3):
            quoted, shortened = self.quote(passage.text, rng)
            asked = [*asked[: self.queries - 1], quoted]
            text = shortened if rng.random() < 0.5 else text
        batch.answers += [len(batch.documents)] * len(asked)
        batch.documents.append(text)
        batch.queries += [typed(query, rng) for query in asked]

    def quote(self, text: str, rng: random.Random) -> tuple[str, str]:
        """(a query made of the text, the text without what was quoted)."""
        parts = sentences(text)
        if len(parts) < 2 or rng.random() < 0.35:
            return self.key_words(text, rng), text
        sentence = rng.choice(parts)
        words = sentence.split()
        start = rng.randrange(max(1, len(words) - 20))
        quoted = " ".join(words[start : start + rng.randint(8, 24)])
        return self.reworded(quoted, rng), text.replace(sentence, " ")

    def key_words(self, text: str, rng: random.Random) -> str:
        """Three to eight words of a stretch of the text, in their order, at times in a question."""
        words = [w for w in WORD.findall(text) if w.lower() not in STOP]
        start = rng.randrange(max(1, len(words) - 30))
        window = words[start : start + 30]
        chosen = sorted(rng.sample(range(len(window)), min(len(window), rng.randint(3, 8))))
        query = self.reworded(" ".join(window[i] for i in chosen), rng) or text[:80]
        return rng.choice(FRAMES).format(query) if rng.random() < 0.3 else query

    def reworded(self, query: str, rng: random.Random) -> str:
        """The query with a fifth of the words that have synonyms replaced by one."""
        words = []
        for word in query.split():
            others = self.synonyms.get(word.lower())
            words.append(rng.choice(others) if others and rng.random() < 0.2 else word)
        return " ".join(words)


def typed(query: str, rng: random.Random) -> str:
    """The query as people type: sometimes without its question mark, or with a slip."""
    if rng.random() < 0.3:
        query = query.rstrip("?. ")
    if rng.random() < 0.05 and len(query) > 8:
        at = rng.randrange(1, len(query) - 2)
        one, other = query[at : at + 2]
        slip = rng.choice((other + one, one + one + other, other))  # swapped, doubled, dropped
        query = query[:at] + slip + query[at + 2 :]
    return query


def mine(source: Source, count: int = 8) -> np.ndarray:
    """(passages, count): what BM25 finds for each passage's first query and first words."""
    import bm25s
    import Stemmer

    def tokens(texts: list[str]) -> list[list[str]]:
        found = bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"),
                               return_ids=False, show_progress=False)  # fmt: skip
        return [words or ["?"] for words in found]

    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(tokens([p.text for p in source.passages]), show_progress=False)
    asked = [" ".join([*p.queries[:1], " ".join(p.text.split()[:24])]) for p in source.passages]
    depth = min(count + 1, len(source.passages))
    found, _ = index.retrieve(tokens(asked), k=depth, show_progress=False)
    rows = [[j for j in row if j != i][: depth - 1] for i, row in enumerate(found)]
    return np.array(rows, dtype=np.int32)
