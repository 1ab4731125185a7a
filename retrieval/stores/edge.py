"""Qdrant's own shard engine, in the process: a folder. Needs the extra `qdrant`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as models

from lfm2_mm.errors import BadInput, IndexBusy, IndexMissing, LfmError
from retrieval import storage
from retrieval.stores.points import MEAN, TOKENS, Points

CONFIG = "edge_config.json"
INDEXED = ("document", "source")


def open_store(place: str, *, create: bool) -> Edge:
    """A shard's folder."""
    folder = Path(place).expanduser()
    if os.path.lexists(folder) and not folder.is_dir():
        raise BadInput(f"{folder} is no folder: name a new or an empty one")
    there = (folder / CONFIG).exists()
    if not there and folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder} exists and is no Qdrant shard: name a new or an empty folder")
    if not there and not create:
        raise IndexMissing(
            f"no store at qdrant:{place}: `lfm2-mm index PATH --store qdrant:{place}` makes one"
        )
    return Edge(Shard(folder))


class Edge(Points):
    """A `CandidateStore`. The engine itself holds the folder: one process at a time.

    What is written is in its journal at once, and moved into place at the end.
    """

    def __init__(self, shard: Shard) -> None:
        super().__init__(f"qdrant:{shard.folder}", shard, shard.folder)
        self._shard = shard

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._shard.flush()


class Shard:
    """`points.Calls` over one shard; it is loaded when first needed."""

    models: Any = models

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: Any = None

    @property
    def _shard(self) -> Any:
        if self._loaded is None:
            self._loaded = self._guarded(models.EdgeShard.load, str(self.folder))
        return self._loaded

    def _guarded(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic within the engine is no Exception
            if "WouldBlock" in str(error):
                raise IndexBusy(
                    f"another process has {self.folder} open, and a shard folder serves one at a "
                    "time: try again when it is done, or use a Qdrant server"
                ) from error
            raise LfmError(f"{self.folder}: {error}") from error

    def range_of(self, **bounds: float) -> Any:
        return models.RangeFloat(**bounds)

    def exists(self) -> bool:
        return (self.folder / CONFIG).exists()

    def create(self, dim: int, indexed: Mapping[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        half, dot = models.VectorStorageDatatype.Float16, models.Distance.Dot
        none = models.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
        by_maxsim = models.MultiVectorConfig(models.MultiVectorComparator.MaxSim)
        tokens = models.EdgeVectorParams(
            size=dim, distance=dot, datatype=half, multivector_config=by_maxsim, hnsw_config=none,
            memory=models.Memory.Cold,
        )  # fmt: skip
        mean = models.EdgeVectorParams(size=dim, distance=dot, datatype=half)
        config = models.EdgeConfig(vectors={TOKENS: tokens, MEAN: mean})
        self._loaded = self._guarded(models.EdgeShard.create, str(self.folder), config)
        kinds = models.PayloadSchemaType
        named = {"integer": kinds.Integer, "keyword": kinds.Keyword}
        for field in INDEXED:  # each takes a second; the other fields of a shard are soon scanned
            kind = indexed[field]
            self._update(models.UpdateOperation.create_field_index(field, named[kind]))

    def upsert(self, points: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> None:
        made = [models.Point(*point) for point in points]
        self._update(models.UpdateOperation.upsert_points(made))

    def delete(self, condition: Any) -> None:
        self._update(models.UpdateOperation.delete_points_by_filter(condition))

    def _update(self, operation: Any) -> None:
        self._guarded(self._shard.update, operation)

    def count(self, condition: Any) -> int:
        return int(self._guarded(self._shard.count, models.CountRequest(filter=condition)))

    def query(
        self, tokens: list[list[float]], mean: list[float] | None, wide: int, count: int,
        condition: Any,
    ) -> list[int]:  # fmt: skip
        by_tokens = models.Query.Nearest(tokens, TOKENS)
        if mean is None:
            request = models.QueryRequest(limit=count, query=by_tokens, filter=condition)
        else:
            by_mean = models.Query.Nearest(mean, MEAN)
            first = models.Prefetch(limit=wide, query=by_mean, filter=condition)
            request = models.QueryRequest(limit=count, query=by_tokens, prefetches=[first])
        return [int(one.id) for one in self._guarded(self._shard.query, request)]

    def retrieve(self, ids: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
        found = self._guarded(self._shard.retrieve, list(ids), True, False)
        return [(int(one.id), one.payload) for one in found]

    def scroll(
        self, condition: Any, offset: int | None, limit: int, fields: Sequence[str] | None
    ) -> tuple[list[tuple[int, dict[str, Any]]], int | None]:
        request = models.ScrollRequest(
            offset=offset, limit=limit, filter=condition, with_vector=False,
            with_payload=True if fields is None else list(fields),
        )  # fmt: skip
        found, following = self._guarded(self._shard.scroll, request)
        return [(int(one.id), one.payload) for one in found], following

    def flush(self) -> None:
        if self._loaded is not None:
            self._guarded(self._loaded.flush)

    def optimize(self) -> None:
        self._guarded(self._shard.optimize)

    def bytes(self) -> int:
        return storage.bytes_of(self.folder)

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None
