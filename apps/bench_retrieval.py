"""How fast retrieval is here: one record a row, over made vectors.

Knows what is measured, not how it is shown.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.bench import Row, median_seconds, timed

if TYPE_CHECKING:
    from retrieval.segments import Segment

DIM = 128
RERANKED = 1_000  # documents
COLLECTIONS = (3_000, 10_000)


def bench_retrieval(
    model: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> Iterator[Row]:
    """Encoding with `model`; scoring stored documents; building and searching indexes of them."""
    yield from _encoding(model, device, dtype, offline)
    for codec in ("int8", "4bit", "2bit"):
        yield _rerank(RERANKED, codec)
    for documents in COLLECTIONS:
        yield from _searching(documents)


def _encoding(model: str, device: str, dtype: str, offline: bool) -> Iterator[Row]:
    from retrieval.encoder import open_encoder

    encoder = open_encoder(model, device=device, dtype=dtype, offline=offline)
    for words in (50, 250):
        texts = _texts(64, words)
        tokens = sum(min(encoder.count_tokens(text), encoder.document_length) for text in texts)
        seconds = median_seconds(partial(encoder.encode_documents, texts), repeats=3)
        yield {
            "what": "encode documents",
            "model": encoder.name,
            "size": tokens // len(texts),  # tokens of one document
            "ms": 1e3 * seconds / len(texts),
            "per_s": tokens / seconds,
        }
    seconds = median_seconds(lambda: encoder.encode_queries(["how do refunds work"]))
    yield {
        "what": "encode a query",
        "model": encoder.name,
        "size": 1,
        "ms": 1e3 * seconds,
        "per_s": 1 / seconds,
    }


def _texts(count: int, words: int) -> list[str]:
    """Texts of common words in random order: what an encoder's speed depends on is their length."""
    rng = np.random.default_rng(0)
    common = "the of a search index model token page file word time data with from query text"
    known = common.split()
    return [" ".join(rng.choice(known, words)) for _ in range(count)]


def _rerank(documents: int, codec: str) -> Row:
    """Scoring all of some stored documents for one query, where they lie."""
    from retrieval.codecs import CODECS

    data = Clustered(documents)
    bounds, query = data.bounds, data.query(0)
    stored = [CODECS[codec].encode(data.document(d)) for d in range(documents)]
    rows = np.frombuffer(b"".join(stored), np.uint8).reshape(bounds[-1], -1)
    score = partial(CODECS[codec].scores, query, rows, bounds[:-1], bounds[1:])
    return _told(f"MaxSim, {codec}", documents, median_seconds(score), documents)


def _searching(documents: int) -> Iterator[Row]:
    """An index of its own: building it, finding 10, and how many of the true 10 that finds."""
    from retrieval.candidates import Candidates
    from retrieval.codecs import DEFAULT

    data = Clustered(documents)
    queries = [data.query(number) for number in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        segments = data.segments(Path(folder), DEFAULT)
        seconds = time.perf_counter() - start
        yield _told("index vectors", documents, seconds, documents)
        index = Candidates(segments)
        found = [index.candidates(query, 10)[0] for query in queries]
        seconds = statistics.median(
            timed(partial(index.candidates, query, 10)) for query in queries * 3
        )
    recall = statistics.mean(
        len(set(ids) & set(best)) / 10 for ids, best in zip(found, data.best(queries), strict=True)
    )
    yield _told(f"search, recall@10 {recall:.3f}", documents, seconds, 1)


def _told(what: str, size: int, seconds: float, done: int) -> Row:
    return {"what": what, "model": None, "size": size, "ms": 1e3 * seconds, "per_s": done / seconds}


class Clustered:
    """Vectors with the structure of a collection, made document by document.

    A token is normalise(.75 word + .45 topic + .25 document + .55 noise), with 20,000 words drawn
    by Zipf, 6 documents a topic and 180 to 220 tokens a document; a query is 22 noised tokens of
    one document and 10 words of its topic. The ranks beyond a query's own topic are the hard ones.
    """

    def __init__(self, documents: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.documents, self._seed = documents, seed
        self._words, self._topics = _unit(rng, 20_000), _unit(rng, documents // 6 + 1)
        self.bounds = np.concatenate([[0], np.cumsum(rng.integers(180, 221, documents))])

    def document(self, number: int) -> np.ndarray:
        """(tokens, DIM) float32."""
        rng = np.random.default_rng((self._seed, number))
        tokens = int(self.bounds[number + 1] - self.bounds[number])
        words = self._words[np.minimum(rng.zipf(1.2, tokens), len(self._words)) - 1]
        shared = 0.45 * self._topics[number // 6] + 0.25 * _unit(rng, 1)
        return _normal(0.75 * words + shared + 0.55 * _unit(rng, tokens))

    def query(self, number: int) -> np.ndarray:
        """(32, DIM) float32."""
        rng = np.random.default_rng((self._seed, 1, number))
        source = int(rng.integers(self.documents))
        vectors = self.document(source)
        asked = vectors[rng.integers(0, len(vectors), 22)]
        topic = np.repeat(self._topics[source // 6][None], 10, axis=0)
        return _normal(np.concatenate([asked, topic]) + 0.55 * _unit(rng, 32))

    def segments(self, folder: Path, codec: str, size: int = 4096) -> list[Segment]:
        """Written as an index writes them; the ids are the documents' numbers."""
        from retrieval.codecs import CODECS
        from retrieval.segments import Segment, SegmentWriter

        found = []
        for number, first in enumerate(range(0, self.documents, size), 1):
            writer = SegmentWriter(folder, number, DIM, CODECS[codec])
            for document in range(first, min(first + size, self.documents)):
                writer.add(document, self.document(document))
            found.append(Segment(folder, writer.finish(), DIM))
        return found

    def best(self, queries: Sequence[np.ndarray], k: int = 10) -> np.ndarray:
        """(queries, k) documents by exact MaxSim in float32."""
        lengths = [len(query) for query in queries]
        columns = np.concatenate(queries).T
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        scores = np.empty((len(queries), self.documents), dtype=np.float32)
        for number in range(self.documents):
            best = (self.document(number) @ columns).max(axis=0)
            scores[:, number] = np.add.reduceat(best, begins)
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    return _normal(rng.standard_normal((count, DIM), dtype=np.float32))


def _normal(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
