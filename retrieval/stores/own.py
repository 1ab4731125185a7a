"""Our own index folder as one of the stores: the format of one shard. Knows no encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lfm2_mm.errors import IndexDamaged
from retrieval import filters, storage
from retrieval.candidates import Estimated
from retrieval.catalog import Catalog
from retrieval.compact import compact, tidy
from retrieval.ranking import View
from retrieval.reading import Reader
from retrieval.segments import Segment
from retrieval.storage import Stamp
from retrieval.stores.seam import Caps, Head, Heading, Passage, grouped
from retrieval.stores.where import And, Compare, Glob, In, Or, Where, number_of
from retrieval.writer import Keeping, Writer, writing

COLUMNS = {
    "id": "c.id", "document": "d.id", "page": "c.page", "first": "(c.id = d.id)",
    "seconds": "d.mtime_ns / 1000000000", "source": "d.source", "name": "d.name",
    "kind": "d.kind", "title": "d.title",
}  # fmt: skip


def open_store(place: str, *, create: bool) -> Own:
    """An index folder."""
    folder = Path(place).expanduser()
    storage.require(folder, create=create)
    return Own(folder)


class Own:
    """A `CandidateStore`."""

    caps = Caps("index", "estimates of residual means", patterns=True)

    def __init__(self, folder: Path) -> None:
        self.address = f"index:{folder}"
        self.folder: Path | None = folder
        self._folder = folder
        self._reader = Reader(folder, lambda manifest: None)
        self._writer: Writer | None = None
        self._first: Stamp | None = None  # of an index that is still to be made

    def head(self) -> Head | None:
        with self._snapshot() as (view, catalog):
            manifest = view.manifest
            if manifest.stamp is None or catalog is None:
                return Head(self._first) if self._first else None
            keys: dict[str, bool] = {}
            for one in catalog.sources(manifest.generation):
                for key, value in one.meta.items():
                    keys[key] = keys.get(key, True) and number_of(value) is not None
            following = manifest.next_id
            return Head(manifest.stamp, following, following, keys, manifest.effort)

    def put_head(self, head: Head) -> None:
        """The folder counts its ids by itself; of the rest only the effort can change."""
        self._first = head.stamp
        made = self._writer.manifest if self._writer else None
        if self._writer and made and made.stamp and made.effort != head.effort:
            self._writer.put(replace(made, effort=head.effort))

    def upsert(
        self, passages: Sequence[Passage], gone: Sequence[int] = (), replaces: bool = False
    ) -> None:
        writer, leaving = self._writing(), dict.fromkeys(gone)
        stamp = writer.manifest.stamp or self._first
        assert stamp is not None, "put_head comes first"
        for group in grouped(iter(passages)):
            heading = group[0].heading
            known = writer.known(heading.source)
            if known and known.id == heading.id:
                writer.touch(known, heading.size, heading.mtime_ns, heading.meta)
                continue
            if known:
                leaving.pop(known.id, None)
            document = heading.whole([one.chunk for one in group])
            writer.take(stamp, document, [one.rows for one in group], known)
        if leaving:
            self._remove(In("document", tuple(leaving)))
        writer.commit()

    def delete(self, where: Where) -> None:
        self._remove(where)
        self._writing().commit()

    def _remove(self, where: Where) -> None:
        for heading in list(self.headings(where)):
            if known := self._writing().known(heading.source):
                self._writing().remove(known)

    def count(self, where: Where | None = None) -> int:
        with self._snapshot() as (view, catalog):
            if catalog is None:
                return 0
            return view.manifest.chunks if where is None else len(_select(view, catalog, where))

    def candidates(
        self, query: np.ndarray, count: int, where: Where | None = None
    ) -> Sequence[int]:
        with self._snapshot() as (view, catalog):
            if catalog is None:
                return []
            allowed = _select(view, catalog, where) if where else None
            found = Estimated(view.segments).propose(query, count, allowed)
            return [int(one) for one in found]

    def fetch(self, ids: Sequence[int]) -> list[Passage]:
        wanted = set(ids)
        documents: dict[int, None] = {}
        with self._snapshot() as (view, catalog):
            if catalog is None:
                return []
            for row in catalog.rows(sorted(wanted)):
                documents[row.document] = None
            passages = (one for d in documents for one in _document(view, catalog, d))
            return [one for one in passages if one.id in wanted]

    def scan(self, where: Where | None = None) -> Iterator[Passage]:
        reader = Reader(self._folder, lambda manifest: None)  # a scan is long: others read too
        with contextlib.closing(reader), reader.snapshot() as view:
            if not view.manifest.generation:
                return
            catalog = reader.catalog()
            wanted = None if where is None else set(_select(view, catalog, where).tolist())
            for document in catalog.alive(view.manifest.generation):
                for one in _document(view, catalog, document):
                    if wanted is None or one.id in wanted:
                        yield one

    def headings(self, where: Where | None = None) -> Iterator[Heading]:
        found: list[Heading] = []
        with self._snapshot() as (view, catalog):
            if catalog is None:
                return iter(found)
            now = view.manifest.generation
            wanted = None if where is None else set(_select(view, catalog, where).tolist())
            for one in catalog.sources(now):
                if wanted is not None and one.document not in wanted:
                    continue
                known = catalog.find(one.source, now)
                assert known is not None
                found.append(
                    Heading(
                        one.document, one.source, one.kind, one.title, known.size,
                        known.mtime_ns, known.sha256, one.chunks, one.tokens, one.meta,
                    )
                )  # fmt: skip
        return iter(found)

    def tidy(self) -> None:
        tidy(self._writing())

    def optimize(self) -> None:
        compact(self._writing())

    def bytes(self) -> int:
        return storage.bytes_of(self._folder)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        keeping = Keeping(self._first.codec, self._first.pool) if self._first else Keeping()
        with writing(self._folder, _none_here, keeping) as writer:
            self._writer = writer
            try:
                yield
            finally:
                self._writer = None

    def close(self) -> None:
        self._reader.close()

    def _writing(self) -> Writer:
        assert self._writer is not None, "within `writing` only"
        return self._writer

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[tuple[View, Catalog | None]]:
        """One published state."""
        with self._reader.snapshot() as view:
            yield view, self._reader.catalog() if view.manifest.generation else None


def _none_here() -> NoReturn:
    raise AssertionError("rows come encoded")


def _document(view: View, catalog: Catalog, document: int) -> Iterator[Passage]:
    """The passages of one, as a store keeps them. Raises IndexDamaged."""
    whole = catalog.whole(document)
    if whole is None:
        raise IndexDamaged(
            f"document {document} is not as it was written; `lfm2-mm check` tells more"
        )
    heading = Heading.of(whole)
    for place, chunk in enumerate(whole.chunks):
        rows = _rows(view.segments, document + place)
        yield Passage.made(document + place, heading, chunk, rows)


def _rows(segments: Sequence[Segment], chunk: int) -> np.ndarray:
    for segment in segments:
        if segment.entry.first <= chunk <= segment.entry.last:
            for row in segment.find(np.array([chunk])):
                return segment.stored(int(row))
    raise IndexDamaged(f"passage {chunk} has no vectors; `lfm2-mm check` tells more")


def _select(view: View, catalog: Catalog, where: Where) -> np.ndarray:
    values: dict[str, Any] = {}
    return catalog.chosen(_sql(where, values), values, view.manifest.generation)


def _sql(where: Where, values: dict[str, Any]) -> str:
    """SQL over `documents d` and `chunks c`; what it binds goes into `values`."""

    def slot(value: Any) -> str:
        if isinstance(value, int):  # SQLite binds some thousands only
            return str(value)
        name = f"v{len(values)}"
        values[name] = value
        return f":{name}"

    match where:
        case And(parts) | Or(parts):
            word = " AND " if isinstance(where, And) else " OR "
            return "(" + word.join(_sql(part, values) for part in parts) + ")"
        case In(field, chosen) if field in ("suffix", "ending"):
            name = "lower(d.name)" if field == "ending" else "d.name"
            like = [f"{name} GLOB {slot(f'*.{one}')}" for one in chosen]
            return "(" + (" OR ".join(like) or "FALSE") + ")"
        case In(field, chosen) if field.startswith("meta:"):
            key = field.removeprefix("meta:")
            same = []
            for one in chosen:
                name = f"m{len(values)}"
                values |= {name: one, f"{name}_key": key}
                same.append(filters.SAME.format(name))
            return "(" + (" OR ".join(same) or "FALSE") + ")"
        case In(field, chosen):
            return f"{COLUMNS[field]} IN ({', '.join(map(slot, chosen))})"
        case Compare(field, sign, value) if field.startswith("number:"):
            name = f"m{len(values)}"
            key = field.removeprefix("number:")
            values |= {name: str(value), f"{name}_key": key, f"{name}_number": value}
            return filters.META.format(name, sign)
        case Compare(field, sign, value):
            return f"{COLUMNS[field]} {sign} {slot(value)}"
        case Glob(field, pattern):
            return f"{COLUMNS[field]} GLOB {slot(pattern)}"
    raise AssertionError(f"{where} is resolved before")
