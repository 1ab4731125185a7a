"""A collection in Qdrant: what the shard engine in the process and a server have in common.

One point a passage; point 0 holds the head. Each has two vectors: its tokens, compared by MaxSim,
and their mean, by which a first stage looks. The rows of our codec are in the payload: they come
back ten times faster than the vectors do. Knows neither library; `Calls` is what each must offer.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval.codecs import CODECS
from retrieval.rows import NewChunk
from retrieval.storage import Stamp
from retrieval.stores.seam import Caps, Head, Heading, Passage
from retrieval.stores.where import And, Compare, In, Or, Where, number_of, suffix

TOKENS, MEAN = "tokens", "mean"
WIDE, WIDER = 1000, 10  # passages that the means propose, or for each that is asked for
UPLOAD = 64  # passages in one request: some 10 MB of JSON
PAGE = 256  # passages read at once
HEAD_ID = 0
HEADING = ("document", "source", "kind", "title", "size", "mtime_ns", "sha256", "chunks",
           "doc_tokens", "meta")  # fmt: skip
CHUNK = ("start", "end", "text", "context", "heading", "page")
INDEXED = {
    "document": "integer", "id": "integer", "first": "integer", "page": "integer",
    "seconds": "integer", "source": "keyword", "name": "keyword", "suffix": "keyword",
    "ending": "keyword", "kind": "keyword", "title": "keyword",
}  # fmt: skip


class Calls(Protocol):
    """One Qdrant library."""

    models: Any  # Filter, FieldCondition, MatchAny, and `range_of(**bounds)` below

    def range_of(self, **bounds: float) -> Any: ...
    def exists(self) -> bool: ...
    def create(self, dim: int, indexed: Mapping[str, str]) -> None: ...
    def upsert(self, points: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]) -> None: ...
    def delete(self, condition: Any) -> None: ...
    def count(self, condition: Any) -> int: ...
    def query(
        self, tokens: list[list[float]], mean: list[float] | None, wide: int, count: int,
        condition: Any,
    ) -> list[int]: ...  # fmt: skip
    def retrieve(self, ids: Sequence[int]) -> list[tuple[int, dict[str, Any]]]: ...
    def scroll(
        self, condition: Any, offset: int | None, limit: int, fields: Sequence[str] | None
    ) -> tuple[list[tuple[int, dict[str, Any]]], int | None]: ...
    def optimize(self) -> None: ...
    def bytes(self) -> int: ...
    def close(self) -> None: ...


class Points:
    """A `CandidateStore` but for `writing`, over one Qdrant library."""

    caps = Caps("qdrant", "mean vectors, then MaxSim over half floats", exact=True)

    def __init__(self, address: str, calls: Calls, folder: Path | None = None) -> None:
        self.address, self.folder = address, folder
        self._calls = calls

    def head(self) -> Head | None:
        if not self._calls.exists():
            return None
        for _, payload in self._calls.retrieve([HEAD_ID]):
            raw = payload["about"]
            return Head(**{**raw, "stamp": Stamp(**raw["stamp"])})
        return None

    def put_head(self, head: Head) -> None:
        if not self._calls.exists():
            self._calls.create(head.stamp.dim, INDEXED)
        self._calls.upsert([(HEAD_ID, {}, {"about": asdict(head)})])

    def upsert(
        self, passages: Sequence[Passage], gone: Sequence[int] = (), replaces: bool = False
    ) -> None:
        head = self.head()
        assert head is not None, "put_head comes first"
        for first in range(0, len(passages), UPLOAD):
            some = passages[first : first + UPLOAD]
            self._calls.upsert([_point(one, head.stamp) for one in some])
        if gone:
            self.delete(In("document", tuple(int(one) for one in gone)))

    def delete(self, where: Where) -> None:
        self._calls.delete(self._condition(where))

    def count(self, where: Where | None = None) -> int:
        return self._calls.count(self._condition(where))

    def candidates(
        self, query: np.ndarray, count: int, where: Where | None = None
    ) -> Sequence[int]:
        tokens, mean = query.tolist(), query.mean(axis=0).tolist()
        return self._calls.query(
            tokens, mean, max(WIDE, WIDER * count), count, self._condition(where)
        )

    def fetch(self, ids: Sequence[int]) -> list[Passage]:
        head = self.head()
        assert head is not None
        width = CODECS[head.stamp.codec].row_bytes(head.stamp.dim)
        found = self._calls.retrieve([int(one) for one in ids]) if len(ids) else []
        return [_passage(one, payload, width) for one, payload in found]

    def scan(self, where: Where | None = None) -> Iterator[Passage]:
        head = self.head()
        assert head is not None
        width = CODECS[head.stamp.codec].row_bytes(head.stamp.dim)
        for one, payload in self._pages(where, None):
            yield _passage(one, payload, width)

    def headings(self, where: Where | None = None) -> Iterator[Heading]:
        first = In("first", (1,))
        both = And((first, where)) if where else first
        for _, payload in self._pages(both, HEADING):
            yield _heading(payload)

    def tidy(self) -> None:
        """Nothing: points can be found at once."""

    def optimize(self) -> None:
        self._calls.optimize()

    def bytes(self) -> int:
        return self._calls.bytes()

    def close(self) -> None:
        self._calls.close()

    def _pages(
        self, where: Where | None, fields: Sequence[str] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Points by ascending id: Qdrant scrolls so."""
        condition, offset = self._condition(where), None
        while True:
            found, offset = self._calls.scroll(condition, offset, PAGE, fields)
            yield from found
            if offset is None:
                return

    def _condition(self, where: Where | None) -> Any:
        """A filter that the head's point never fits: it has no document."""
        passages = self._leaf(Compare("document", ">=", 1))
        parts = [passages] if where is None else [passages, self._leaf(where)]
        return self._calls.models.Filter(must=parts)

    def _leaf(self, where: Where) -> Any:
        models, range_of = self._calls.models, self._calls.range_of
        match where:
            case And(parts):
                return models.Filter(must=[self._leaf(part) for part in parts])
            case Or(parts):
                return models.Filter(should=[self._leaf(part) for part in parts])
            case In(field, values) if not values:
                return models.FieldCondition(key="document", range=range_of(lt=0.0))
            case In(field, values):
                match_any = models.MatchAny(any=list(values))
                return models.FieldCondition(key=_key(field), match=match_any)
            case Compare(field, "=", value):
                both = range_of(gte=float(value), lte=float(value))
                return models.FieldCondition(key=_key(field), range=both)
            case Compare(field, sign, value):
                name = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}[sign]
                bound = range_of(**{name: float(value)})
                return models.FieldCondition(key=_key(field), range=bound)
        raise AssertionError(f"{where} is resolved before")


def _key(field: str) -> str:
    """A metadata key may hold any sign, so it is spelled in letters and digits."""
    kind, colon, key = field.partition(":")
    return f"{kind}.{_plain(key)}" if colon else field


def _plain(key: str) -> str:
    return "k" + key.encode().hex()


def _spelled(plain: str) -> str:
    return bytes.fromhex(plain[1:]).decode()


def _point(one: Passage, stamp: Stamp) -> tuple[int, dict[str, Any], dict[str, Any]]:
    h, c = one.heading, one.chunk
    vectors = one.vectors(stamp)
    mean = vectors.mean(axis=0)
    numbers = ((key, number_of(value)) for key, value in h.meta.items())
    payload = {
        "id": one.id, "document": h.id, "first": int(one.id == h.id), "source": h.source,
        "name": h.name, "suffix": suffix(h.name), "ending": suffix(h.name).lower(),
        "kind": h.kind, "title": h.title, "size": h.size, "mtime_ns": h.mtime_ns,
        "seconds": None if h.mtime_ns is None else h.mtime_ns // 1_000_000_000,
        "sha256": h.sha256, "chunks": h.chunks, "doc_tokens": h.tokens,
        "meta": {_plain(key): value for key, value in h.meta.items()},
        "number": {_plain(key): value for key, value in numbers if value is not None},
        "start": c.start, "end": c.end, "text": c.text, "context": c.context,
        "heading": c.heading, "page": c.page, "sum": one.sum,
        "rows": base64.b64encode(one.rows.tobytes()).decode(),
    }  # fmt: skip
    return one.id, {TOKENS: vectors.tolist(), MEAN: mean.tolist()}, payload


def _heading(payload: Mapping[str, Any]) -> Heading:
    told: dict[str, Any] = {name: payload.get(name) for name in HEADING}
    told["meta"] = {_spelled(key): value for key, value in (told["meta"] or {}).items()}
    return Heading(*told.values())


def _passage(chunk_id: int, payload: Mapping[str, Any], width: int) -> Passage:
    rows = np.frombuffer(base64.b64decode(payload["rows"]), np.uint8).reshape(-1, width)
    chunk = NewChunk(*(payload.get(name) for name in CHUNK))  # type: ignore[arg-type]
    return Passage(chunk_id, _heading(payload), chunk, rows, payload["sum"])
