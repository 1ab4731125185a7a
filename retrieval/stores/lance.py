"""A collection in LanceDB: a folder or a bucket, opened in the process. Needs the extra `lancedb`.

One row a passage. LanceDB proposes by its own multi-vector search; its distances are only used as
an order (without refinement they are estimates), the rows of our codec lie beside the vectors.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfPq, LabelList

from lfm2_mm.errors import BadInput, IndexMissing, LfmError
from retrieval import storage
from retrieval.codecs import CODECS
from retrieval.rows import NewChunk
from retrieval.storage import Stamp
from retrieval.stores.seam import Caps, Head, Heading, Passage
from retrieval.stores.where import And, Compare, Glob, In, Meta, Or, Where, number_of, regex, suffix

PASSAGES, ABOUT = "passages", "about"
INDEXED = 512  # passages from which on an index is made; fewer are scored as a whole
UNINDEXED = 0.1  # of the passages, before `tidy` takes them into the index
PROBES = 20  # partitions that are searched for each vector of a query
SAMPLE, ITERATIONS = 64, 10  # k-means: more takes minutes and finds no more
KEPT = timedelta(minutes=10)  # what older versions stay for readers that began with them
FRAGMENTS = 32  # written one by one before they are merged
BATCH = 1024  # passages read at once
HEADING = ("document", "source", "kind", "title", "size", "mtime_ns", "sha256", "chunks",
           "doc_tokens", "meta")  # fmt: skip
CHUNK = ("start", "end", "text", "context", "heading", "page")
P = ParamSpec("P")
R = TypeVar("R")
TAKEN = ["id", *HEADING, *CHUNK, "sum", "rows"]


def open_store(place: str, *, create: bool) -> Lance:
    """A folder, or a bucket as LanceDB knows them (s3://, gs://, az://)."""
    remote = "://" in place
    root = place if remote else str(Path(place).expanduser())
    if not remote and os.path.isdir(root):
        strange = [n for n in os.listdir(root) if not n.endswith(".lance") and n != storage.LOCK]
        if strange:
            raise BadInput(f"{root} holds {strange[0]}, which is not LanceDB's: name a new folder")
    elif not remote and os.path.lexists(root):
        raise BadInput(f"{root} is no folder: name a new or an empty one")
    elif not remote and not create:
        raise _missing(place)
    store = Lance(root, remote)
    if store.head() is None and not create:
        raise _missing(place)
    return store


def _missing(place: str) -> IndexMissing:
    return IndexMissing(
        f"no store at lancedb:{place}: `lfm2-mm index PATH --store lancedb:{place}` makes one"
    )


def told(method: Callable[Concatenate[Lance, P], R]) -> Callable[Concatenate[Lance, P], R]:
    """What the engine raises in a method becomes one line; it may be anything."""

    @wraps(method)
    def call(self: Lance, *args: P.args, **named: P.kwargs) -> R:
        with self.telling():
            return method(self, *args, **named)

    return call


class Lance:
    """A `CandidateStore`."""

    caps = Caps("lancedb", "IVF_PQ over token vectors, missing ones estimated", patterns=True)

    def __init__(self, root: str, remote: bool) -> None:
        self.address = f"lancedb:{root}"
        self.folder = None if remote else Path(root)
        self._root, self._remote = root, remote
        self._opened: Any = None
        self._tables: dict[str, Any] = {}

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What the engine raises meanwhile, as LfmError."""
        try:
            yield
        except (LfmError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic within the engine is no Exception
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise LfmError(
                f"{self.address} cannot be used: {why}; give a folder or a bucket that can be, or "
                "copy the collection anew if it is damaged"
            ) from error

    @property
    def _db(self) -> Any:
        if self._opened is None:
            self._opened = lancedb.connect(self._root)
        return self._opened

    def _table(self, name: str) -> Any:
        """A table as it is now: others may have written."""
        if name not in self._tables:
            self._tables[name] = self._db.open_table(name)
        self._tables[name].checkout_latest()
        return self._tables[name]

    @told
    def head(self) -> Head | None:
        if not self._remote and not os.path.isdir(self._root):
            return None
        if ABOUT not in self._db.list_tables().tables:
            return None
        (row,) = self._table(ABOUT).search().limit(1).to_list()
        raw = json.loads(row["about"])
        return Head(**{**raw, "stamp": Stamp(**raw["stamp"])})

    @told
    def put_head(self, head: Head) -> None:
        about = pa.table({"about": [json.dumps(asdict(head))]})
        there = self._db.list_tables().tables
        if PASSAGES not in there:
            self._db.create_table(PASSAGES, schema=_schema(head.stamp))
        if ABOUT in there:
            self._table(ABOUT).add(about, mode="overwrite")
        else:
            self._db.create_table(ABOUT, about)

    @told
    def upsert(
        self, passages: Sequence[Passage], gone: Sequence[int] = (), replaces: bool = False
    ) -> None:
        head = self.head()
        assert head is not None, "put_head comes first"
        table, new = self._table(PASSAGES), _arrow(passages, head.stamp)
        if not gone and not replaces:
            table.add(new)
            return
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if gone:  # one commit: nobody sees both states of a document
            merge = merge.when_not_matched_by_source_delete(f"document IN ({_numbers(gone)})")
        merge.execute(new)

    @told
    def delete(self, where: Where) -> None:
        self._table(PASSAGES).delete(_sql(where))

    @told
    def count(self, where: Where | None = None) -> int:
        return int(self._table(PASSAGES).count_rows(_sql(where) if where else None))

    @told
    def candidates(
        self, query: np.ndarray, count: int, where: Where | None = None
    ) -> Sequence[int]:
        search = self._table(PASSAGES).search(query, vector_column_name="tokens")
        search = search.distance_type("cosine").nprobes(PROBES)
        if where:
            search = search.where(_sql(where), prefilter=True)
        found = search.select(["id", "_distance"]).limit(count).to_arrow()
        return [int(one) for one in found["id"].to_pylist()]

    def fetch(self, ids: Sequence[int]) -> list[Passage]:
        return list(self._read(TAKEN, f"id IN ({_numbers(ids)})")) if len(ids) else []

    def scan(self, where: Where | None = None) -> Iterator[Passage]:
        """Ordered by looking up the ids first: a table's own order is that of its fragments."""
        condition = _sql(where) if where else None
        ids = self._ids(condition)
        for first in range(0, len(ids), BATCH):
            some = ids[first : first + BATCH]
            within = f"id BETWEEN {some[0]} AND {some[-1]}"
            both = f"({within}) AND ({condition})" if condition else within
            yield from sorted(self._read(TAKEN, both), key=lambda one: one.id)

    @told
    def _ids(self, condition: str | None) -> list[int]:
        """Ascending."""
        search = self._table(PASSAGES).search()
        found = (search.where(condition) if condition else search).select(["id"]).to_arrow()
        return sorted(found["id"].to_pylist())

    def headings(self, where: Where | None = None) -> Iterator[Heading]:
        first = "id = document"
        condition = f"{first} AND ({_sql(where)})" if where else first
        for batch in self._batches(list(HEADING), condition):
            yield from map(_heading, batch.to_pylist())

    def tidy(self) -> None:
        self._index(all_of_it=False)

    @told
    def optimize(self) -> None:
        self._index(all_of_it=True)
        for name in (PASSAGES, ABOUT):
            self._table(name).optimize(cleanup_older_than=KEPT)

    @told
    def _index(self, *, all_of_it: bool) -> None:
        table = self._table(PASSAGES)
        rows = table.count_rows()
        names = {name: one.name for one in table.list_indices() for name in one.columns}
        if rows >= INDEXED and "tokens" not in names:
            tokens = sum(heading.tokens for heading in self.headings())
            dim = table.schema.field("tokens").type.value_type.list_size
            table.create_index("tokens", config=_ivf(tokens, dim))
            for column, kind in (("id", BTree), ("source", BTree), ("meta", LabelList)):
                if column not in names:
                    table.create_index(column, config=kind())
            return
        fragments = table.stats()["fragment_stats"]["num_fragments"]
        new = 0
        if "tokens" in names:
            new = table.index_stats(names["tokens"]).num_unindexed_rows
        if all_of_it or fragments > FRAGMENTS or new > max(INDEXED, UNINDEXED * rows):
            table.optimize()

    @told
    def bytes(self) -> int:
        if not self._remote:
            return storage.bytes_of(Path(self._root))
        return int(self._table(PASSAGES).stats()["total_bytes"])

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A bucket has no lock that ends with a dead process: there, one writer is a promise."""
        if self._remote:
            yield
            return
        with storage.writing(Path(self._root)):
            yield

    def close(self) -> None:
        self._opened = None
        self._tables.clear()

    def _read(self, columns: list[str], condition: str) -> Iterator[Passage]:
        head = self.head()
        assert head is not None
        width = CODECS[head.stamp.codec].row_bytes(head.stamp.dim)
        for batch in self._batches(columns, condition):
            for row in batch.to_pylist():
                yield _passage(row, width)

    def _batches(self, columns: list[str], condition: str) -> Iterable[Any]:
        with self.telling():
            search = self._table(PASSAGES).search().where(condition).select(columns)
            yield from search.to_batches(batch_size=BATCH)


def _ivf(tokens: int, dim: int) -> IvfPq:
    """128 partitions for 0.6 million vectors, 256 for 2: what was measured to be enough."""
    partitions = 1 << max(2, round(math.log2(max(1.0, math.sqrt(tokens) / 6))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return IvfPq(
            distance_type="cosine", num_partitions=partitions, num_sub_vectors=max(1, dim // 8),
            sample_rate=SAMPLE, max_iterations=ITERATIONS,
        )  # fmt: skip


def _schema(stamp: Stamp) -> pa.Schema:
    text, whole = pa.string(), pa.int64()
    return pa.schema(
        [
            pa.field("id", whole, nullable=False),
            *((name, whole) for name in ("document", "size", "mtime_ns", "seconds", "chunks")),
            *((name, whole) for name in ("doc_tokens", "start", "end", "page", "sum")),
            *((name, text) for name in ("source", "name", "suffix", "ending", "kind", "title")),
            *((name, text) for name in ("sha256", "text", "context", "heading")),
            ("meta", pa.list_(text)),
            ("numbers", pa.map_(text, pa.float64())),
            ("rows", pa.large_binary()),
            # Halves would be half the disk, but making the index takes twenty times as long.
            ("tokens", pa.list_(pa.list_(pa.float32(), stamp.dim))),
        ]
    )


def _arrow(passages: Sequence[Passage], stamp: Stamp) -> pa.Table:
    schema = _schema(stamp)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names if name != "tokens"}
    vectors = [one.vectors(stamp) for one in passages]
    for one in passages:
        for name, value in _values(one).items():
            columns[name].append(value)
    arrays = {n: pa.array(v, schema.field(n).type) for n, v in columns.items()}
    flat = np.concatenate([*vectors, np.empty((0, stamp.dim), np.float32)])
    rows = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), stamp.dim)
    bounds = np.cumsum([0, *(len(v) for v in vectors)], dtype=np.int32)
    arrays["tokens"] = pa.ListArray.from_arrays(pa.array(bounds), rows)
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _values(one: Passage) -> dict[str, Any]:
    h, c = one.heading, one.chunk
    numbers = ((key, number_of(value)) for key, value in h.meta.items())
    return {
        "id": one.id, "document": h.id, "size": h.size, "mtime_ns": h.mtime_ns,
        "seconds": None if h.mtime_ns is None else h.mtime_ns // 1_000_000_000,
        "chunks": h.chunks, "doc_tokens": h.tokens, "source": h.source, "name": h.name,
        "suffix": suffix(h.name), "ending": suffix(h.name).lower(), "kind": h.kind,
        "title": h.title, "sha256": h.sha256, "start": c.start, "end": c.end, "text": c.text,
        "context": c.context, "heading": c.heading, "page": c.page, "sum": one.sum,
        "meta": [f"{key}={value}" for key, value in sorted(h.meta.items())],
        "numbers": [(key, number) for key, number in numbers if number is not None],
        "rows": one.rows.tobytes(),
    }  # fmt: skip


def _heading(row: Mapping[str, Any]) -> Heading:
    document, source, kind, title, size, mtime_ns, sha256, chunks, tokens, meta = (
        row[name] for name in HEADING
    )
    pairs = [one.split("=", 1) for one in meta]  # no key holds a "="
    return Heading(
        document, source, kind, title, size, mtime_ns, sha256, chunks, tokens,
        dict(pairs),
    )  # fmt: skip


def _passage(row: Mapping[str, Any], width: int) -> Passage:
    rows = np.frombuffer(row["rows"], np.uint8).reshape(-1, width)
    chunk = NewChunk(*(row[name] for name in CHUNK))
    return Passage(row["id"], _heading(row), chunk, rows, row["sum"])


def _sql(where: Where) -> str:
    match where:
        case And(parts) | Or(parts):
            word = " AND " if isinstance(where, And) else " OR "
            return "(" + word.join(map(_sql, parts)) + ")"
        case In(field, values) if field.startswith("meta:"):
            key = field.removeprefix("meta:")
            return _any(f"array_has(meta, {_text(f'{key}={value}')})" for value in values)
        case In(field, values) if not values:
            return "FALSE"
        case In(field, values):
            return f"{field} IN ({', '.join(map(_value, values))})"
        case Compare(field, sign, value) if field.startswith("number:"):
            key = _text(field.removeprefix("number:"))
            return f"map_extract(numbers, {key})[1] {sign} {float(value)!r}"
        case Compare(field, sign, value):
            return f"{field} {sign} {int(value)}"
        case Glob(field, pattern):
            return f"regexp_like({field}, {_text(f'^{regex(pattern)}$')})"
        case Meta():
            raise AssertionError("is resolved before")
    raise AssertionError(where)


def _any(parts: Iterable[str]) -> str:
    return "(" + (" OR ".join(parts) or "FALSE") + ")"


def _numbers(ids: Iterable[int]) -> str:
    return ", ".join(str(int(one)) for one in ids)


def _value(value: str | int) -> str:
    return str(value) if isinstance(value, int) else _text(value)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
