"""A Qdrant server, through `qdrant-client`: the same requests as to the shard engine.

Not run by us against a server: none can be installed from a package index. The tests run these
calls through the client's own local mode, which answers the same interface.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdrant_client import QdrantClient, models

from lfm2_mm.address import checked_url
from lfm2_mm.errors import IndexMissing, LfmError
from retrieval.stores.points import MEAN, TOKENS, Points

COLLECTION = "lfm2-mm"
LIKE = "qdrant:http://localhost:6333"  # an address, for messages
TIMEOUT_S = 60


def open_store(place: str, *, create: bool) -> Server:
    """A URL, with the collection's name as its path. Raises BadInput for what is none."""
    url = urllib.parse.urlsplit(checked_url(place, LIKE))
    name = url.path.strip("/") or COLLECTION
    client = QdrantClient(
        url=f"{url.scheme}://{url.netloc}", timeout=TIMEOUT_S, check_compatibility=False
    )
    return opened(f"qdrant:{place}", client, name, create=create)


def opened(address: str, client: QdrantClient, name: str, *, create: bool) -> Server:
    """A collection of a client that is connected."""
    calls = Remote(address, client, name)
    if not create and not calls.exists():
        raise IndexMissing(
            f"no store at {address}: `lfm2-mm index PATH --store {address}` makes one"
        )
    return Server(address, calls)


class Server(Points):
    """A `CandidateStore`. Any number of readers; that one writes at a time is a promise."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        yield


class Remote:
    """`points.Calls` over a client."""

    models: Any = models

    def __init__(self, address: str, client: QdrantClient, name: str) -> None:
        self._address, self._client, self._name = address, client, name

    def _guarded(self, call: Any, *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise LfmError(f"{self._address}: {why}; is that a Qdrant server, running?") from error

    def range_of(self, **bounds: float) -> Any:
        return models.Range(**bounds)

    def exists(self) -> bool:
        return bool(self._guarded(self._client.collection_exists, self._name))

    def create(self, dim: int, indexed: Mapping[str, str]) -> None:
        half, dot = models.Datatype.FLOAT16, models.Distance.DOT
        tokens = models.VectorParams(
            size=dim, distance=dot, datatype=half, on_disk=True,
            multivector_config=models.MultiVectorConfig(
                comparator=models.MultiVectorComparator.MAX_SIM
            ),
            hnsw_config=models.HnswConfigDiff(m=0),
        )  # fmt: skip
        mean = models.VectorParams(size=dim, distance=dot, datatype=half)
        self._guarded(
            self._client.create_collection, self._name,
            vectors_config={TOKENS: tokens, MEAN: mean}, on_disk_payload=True,
        )  # fmt: skip
        for field, kind in indexed.items():
            self._guarded(self._client.create_payload_index, self._name, field, kind)

    def upsert(self, points: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> None:
        made = [models.PointStruct(id=i, vector=v, payload=p) for i, v, p in points]
        self._guarded(self._client.upsert, self._name, made, wait=True)

    def delete(self, condition: Any) -> None:
        chosen = models.FilterSelector(filter=condition)
        self._guarded(self._client.delete, self._name, chosen, wait=True)

    def count(self, condition: Any) -> int:
        found = self._guarded(self._client.count, self._name, count_filter=condition, exact=True)
        return int(found.count)

    def query(
        self, tokens: list[list[float]], mean: list[float] | None, wide: int, count: int,
        condition: Any,
    ) -> list[int]:  # fmt: skip
        first = None
        if mean is not None:
            first = models.Prefetch(query=mean, using=MEAN, limit=wide, filter=condition)
        found = self._guarded(
            self._client.query_points, self._name, query=tokens, using=TOKENS, limit=count,
            prefetch=first, query_filter=None if first else condition, with_payload=False,
        )  # fmt: skip
        return [int(one.id) for one in found.points]

    def retrieve(self, ids: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
        found = self._guarded(self._client.retrieve, self._name, list(ids), with_payload=True)
        return [(int(one.id), one.payload or {}) for one in found]

    def scroll(
        self, condition: Any, offset: int | None, limit: int, fields: Sequence[str] | None
    ) -> tuple[list[tuple[int, dict[str, Any]]], int | None]:
        found, following = self._guarded(
            self._client.scroll, self._name, scroll_filter=condition, offset=offset, limit=limit,
            with_payload=True if fields is None else list(fields), with_vectors=False,
        )  # fmt: skip
        return [(int(one.id), one.payload or {}) for one in found], following

    def optimize(self) -> None:
        """A server does so by itself."""

    def bytes(self) -> int:
        return 0  # a server does not tell

    def close(self) -> None:
        self._client.close()
