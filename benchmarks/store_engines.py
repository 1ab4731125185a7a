"""The stores as engines of `benchmarks.retrieval search`: each builds in a folder, or answers.

Rows are our int8 codec's in all of them, so what differs is what an engine proposes. "as returned"
is the engine's own order, the rest its candidates in the order of our exact scores.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from apps.bench_retrieval import DIM, Clustered
from benchmarks.retrieval_engines import answering, built

BATCH = 500


def lancedb(folder: str, documents: int, what: str) -> Any:
    return _store(f"lancedb:{folder}/store", documents, what, [100, 200, 1000])


def qdrant_edge(folder: str, documents: int, what: str) -> Any:
    return _store(f"qdrant:{folder}/store", documents, what, [30, 200])


def _store(address: str, documents: int, what: str, efforts: list[int]) -> Any:
    from retrieval.stores import open_store
    from retrieval.stores.collection import Collection

    data = Clustered(documents)
    if what == "build":
        place = str(Path(address.partition(":")[2]).parent)
        return None, built(place, lambda: _fill(address, data))
    store = open_store(address)
    collection = Collection(store, None, {}, {})
    head = store.head()
    assert head is not None

    def find(setting: str, query: np.ndarray) -> list[int]:
        if setting == "as returned":
            return [one - 1 for one in store.candidates(query, 10)]
        effort = dataclasses.replace(head, effort=int(setting.split()[-1]))
        return [one.id - 1 for one, _ in collection.nearest(effort, query, 10)]

    return answering(data, ["as returned", *(f"our score of {one}" for one in efforts)], find)


def _fill(address: str, data: Clustered) -> None:
    from retrieval.codecs import CODECS
    from retrieval.rows import NewChunk
    from retrieval.storage import Stamp
    from retrieval.stores import open_store
    from retrieval.stores.seam import Head, Heading, Passage

    store, codec = open_store(address, create=True), CODECS["int8"]
    with store.writing():
        store.put_head(Head(Stamp("made", "made", DIM, "int8", 1)))
        for first in range(0, data.documents, BATCH):
            passages = []
            for number in range(first, min(first + BATCH, data.documents)):
                vectors = data.document(number)
                rows = np.frombuffer(codec.encode(vectors), np.uint8).reshape(len(vectors), -1)
                heading = Heading(
                    number + 1, f"d{number}", "text", "", None, None, "", 1, len(vectors), {}
                )
                chunk = NewChunk(0, 0, "", "", "", None)
                passages.append(Passage.made(number + 1, heading, chunk, rows))
            store.upsert(passages)
        store.tidy()
    store.close()


STORES = {"lancedb": lancedb, "qdrant-edge": qdrant_edge}
