"""Rerank, embeddings (refused), and the indexes: search, documents, what they hold."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from apps import replies
from apps.bodies import (
    Changed,
    Documents,
    DocumentsBody,
    EmbeddingsBody,
    Found,
    Indexes,
    IndexInfo,
    Listed,
    NewDocument,
    Refusal,
    RerankBody,
    Reranked,
    SearchBody,
    TextDocument,
)
from apps.service import Conflict, Served, Service
from apps.streams import unless_gone
from apps.watch import note
from lfm2_mm.errors import BadInput

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.index import Index
    from retrieval.types import Report

AT_ONCE = 32  # documents encoded in one step: between two, others may step and a client leave
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 404, 413, 429)
}
CHANGING: dict[int | str, dict[str, Any]] = {**REFUSED, 409: {"model": Refusal}}


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/embeddings", tags=["retrieval"], status_code=400, responses=REFUSED)
    def embeddings(body: EmbeddingsBody) -> Response:
        """Always refused: the checkpoints served give a vector for each token, none for a text."""
        model = service.find(body.model)
        gives = "gives one vector a token" if model.kind == "colbert" else "gives no vectors"
        return replies.refusal(
            400,
            f"{model.name} {gives}, and one for the whole text is asked, which would lose what it "
            "is good at: rank texts with /v1/rerank, search documents with "
            "/v1/indexes/{name}/search",
            "token_vectors",
            param="model",
        )

    @routes.post("/v1/rerank", tags=["retrieval"], response_model=Reranked, responses=REFUSED)
    @routes.post("/v2/rerank", tags=["retrieval"], response_model=Reranked, responses=REFUSED)
    async def rerank(body: RerankBody, request: Request) -> Response:
        """Documents by how well they answer a query, as Cohere and Jina tell it."""
        model = service.find(body.model, "colbert")
        note(request, model=model.name)
        return JSONResponse(await unless_gone(request, _reranked(model, body)))

    @routes.get("/v1/indexes", tags=["indexes"])
    async def indexes() -> Indexes:
        """The indexes that are served."""
        names = list(service.indexes)
        return Indexes(data=[await service.searching.do(_info(service, n)) for n in names])

    @routes.get("/v1/indexes/{name}", tags=["indexes"], responses=REFUSED)
    async def index(name: str) -> IndexInfo:
        """What an index holds."""
        service.index(name)
        return await service.searching.do(_info(service, service.index_name(name)))

    @routes.post(
        "/v1/indexes/{name}/search", tags=["indexes"], response_model=Found, responses=REFUSED
    )
    async def search(name: str, body: SearchBody, request: Request) -> Response:
        """The best passages for a query, with the words that matched."""
        index = service.index(name)
        where = list(body.filter.items()) if isinstance(body.filter, dict) else body.filter
        pairs = None if where is None else [_condition(w) for w in where]

        def work() -> dict[str, Any]:
            start = time.perf_counter()
            hits = index.search(body.query, k=body.k, mode=body.mode, where=pairs)
            seconds = time.perf_counter() - start
            found = [asdict(hit) for hit in hits]
            return {"query": body.query, "index": name, "hits": found, "seconds": seconds}

        return JSONResponse(await unless_gone(request, service.searching.do(work)))

    @routes.get("/v1/indexes/{name}/documents", tags=["indexes"], responses=REFUSED)
    async def documents(name: str) -> Documents:
        """The documents in an index."""
        index = service.index(name)
        found = await service.searching.do(index.sources)
        return Documents(
            data=[
                Listed(
                    id=s.source, title=s.title, chunks=s.chunks, tokens=s.tokens, meta=dict(s.meta)
                )
                for s in found
            ]
        )

    @routes.post("/v1/indexes/{name}/documents", tags=["indexes"], responses=CHANGING)
    async def change(name: str, body: DocumentsBody) -> Changed:
        """Delete, add and upsert documents. What was begun is finished, whoever leaves."""
        index, name = service.index(name), service.index_name(name)
        lock = service.changing[name]
        return await service.writing[name].do(lambda: _changed(name, index, lock, body))

    @routes.delete(
        "/v1/indexes/{name}/documents/{document:path}", tags=["indexes"], responses=CHANGING
    )
    async def delete(name: str, document: str) -> Changed:
        """Delete one document, by its id or a pattern."""
        index, name = service.index(name), service.index_name(name)
        lock, body = service.changing[name], DocumentsBody(delete=[document])
        return await service.writing[name].do(lambda: _changed(name, index, lock, body))

    return routes


# ---- reranking ------------------------------------------------------------------------------


async def _reranked(model: Served, body: RerankBody) -> dict[str, Any]:
    encoder: Encoder = model.engine
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < encoder.document_length:
        raise BadInput(
            f"max_tokens_per_doc is {body.max_tokens_per_doc}; {model.name} reads "
            f"{encoder.document_length} tokens of a document, and fewer cannot be asked"
        )
    texts = [d.text if isinstance(d, TextDocument) else d for d in body.documents]
    if not body.query.strip():
        raise BadInput("the query is empty: say what to rank by")

    def work() -> Any:
        query = encoder.encode_queries([body.query])[0]
        for start in range(0, len(texts), AT_ONCE):
            yield _scores(query, encoder.encode_documents(texts[start : start + AT_ONCE]))

    scores = [score async for part in model.lane.stream(work) for score in part]
    best = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: body.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in best]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    tokens = await model.lane.do(
        lambda: sum(min(encoder.count_tokens(t), encoder.document_length) for t in texts)
    )
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": model.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }


def _scores(query: np.ndarray, documents: Sequence[np.ndarray]) -> list[float]:
    """MaxSim over the query's tokens, -1 to 1; a document without a word is as far as can be."""
    from retrieval.scoring import maxsim

    return [max(float(s) / len(query), -1.0) for s in maxsim(query, documents)]


# ---- indexes --------------------------------------------------------------------------------


def _condition(given: Any) -> tuple[str, str]:
    """A pair, or `key=value`, `date>=2024` as text. Raises BadInput."""
    from retrieval import filters

    if isinstance(given, str):
        found = filters.condition(given)
        if found is None:
            raise BadInput(f"the filter {given!r} is not of the form key=value or key>=value")
        return found
    key, value = given
    return str(key), str(value)


def _info(service: Service, name: str) -> Callable[[], IndexInfo]:
    def work() -> IndexInfo:
        info = service.indexes[name].info()
        return IndexInfo(
            name=name, documents=info.documents, chunks=info.chunks, tokens=info.tokens,
            bytes=info.bytes, model=info.model, version=info.version,
        )  # fmt: skip

    return work


def _changed(name: str, index: Index, lock: threading.Lock, body: DocumentsBody) -> Changed:
    """All that is asked, checked before anything is changed; deletes go first."""
    upserts = [*body.upsert, *body.documents]
    ids = [document.id for document in (*body.add, *upserts)]
    if twice := sorted({i for i in ids if ids.count(i) > 1} if len(ids) > len(set(ids)) else ()):
        raise BadInput(f"{', '.join(map(repr, twice[:5]))} are given twice; send each id once")
    if not (ids or body.delete):
        raise BadInput("nothing is asked: give add, upsert or delete")
    if empty := [d.id for d in (*body.add, *upserts) if not d.text.strip()]:
        raise BadInput(f"the document {empty[0]!r} has no text")
    with lock:
        gone = {source.source for pattern in body.delete for source in _known(index, pattern)}
        for document in body.add:
            there = {s.source for s in index.sources(document.id)} - gone
            if document.id in there:
                raise Conflict(f"a document {document.id!r} is there already; upsert replaces it")
        reports = [index.delete(source) for source in sorted(gone)]
        # Metadata is kept for a run, so each kind of it is a run, and a publication, of its own.
        for meta, group in _by_meta([*body.add, *upserts]):
            reports.append(index.add_texts(group, meta=meta))
        return _told(name, index, reports)


def _known(index: Index, pattern: str) -> list[Any]:
    found = index.sources(pattern)
    if not found:
        raise BadInput(f"no document {pattern!r} to delete; give an id or a pattern such as *.pdf")
    return found


def _by_meta(
    documents: Iterable[NewDocument],
) -> Iterable[tuple[dict[str, str], list[tuple[str, str, str]]]]:
    """(metadata, [(source, text, title)]) for every metadata that occurs."""

    def key(document: NewDocument) -> list[tuple[str, str]]:
        return sorted(document.meta.items())

    for meta, group in groupby(sorted(documents, key=key), key):
        yield dict(meta), [(d.id, d.text, d.title) for d in group]


def _told(name: str, index: Index, reports: Sequence[Report]) -> Changed:
    info = index.info()
    return Changed(
        index=name,
        added=sum(r.added for r in reports),
        updated=sum(r.updated for r in reports),
        removed=sum(r.removed for r in reports),
        unchanged=sum(r.unchanged for r in reports),
        documents=info.documents,
        chunks=info.chunks,
        tokens=info.tokens,
        bytes=info.bytes,
    )
