"""Search, documents, rerank and embeddings by HTTP; and the OpenAPI page, which must be true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

import retrieval
from apps.service import Service
from tests import served

RANKED = ["Bread needs flour and an oven.", "A refund takes five days.", "", "The moon turns."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    models = served.models(folder)
    return Service(models, served.indexes(folder, served.encoder(folder)))


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served.serving(service) as address:
        yield address


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as made:
        yield made


def hits(http: httpx.Client, query: str, **how: Any) -> list[dict[str, Any]]:
    answer = http.post("v1/indexes/shop/search", json={"query": query, **how})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["hits"]
    return found


def change(http: httpx.Client, status: int = 200, **what: Any) -> dict[str, Any]:
    answer = http.post("v1/indexes/shop.index/documents", json=what)
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    return told


# ---- search and documents -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", "colbert", "lexical"])
def test_a_search_is_the_librarys_own(http: httpx.Client, service: Service, mode: Any) -> None:
    index = service.index("shop")
    found = hits(http, "flour and an oven", mode=mode, k=2)
    expected = index.search("flour and an oven", k=2, mode=mode)
    assert [(h["id"], h["source"], h["text"]) for h in found] == [
        (h.id, h.source, h.text) for h in expected
    ]
    assert [h["score"] for h in found] == pytest.approx([h.score for h in expected], abs=1e-5)
    assert [[m["word"] for m in h["matches"]] for h in found] == [
        [m.word for m in h.matches] for h in expected
    ]


def test_documents_come_go_and_are_filtered(http: httpx.Client) -> None:
    before = http.get("v1/indexes/shop").json()["documents"]
    pens = {"id": "pens.md", "text": "Pens are blue.", "title": "Pens", "meta": {"team": "sales"}}
    added = change(http, add=[pens])
    assert (added["added"], added["documents"]) == (1, before + 1)
    assert hits(http, "blue pens", filter={"team": "sales"})[0]["source"] == "pens.md"
    assert hits(http, "blue pens", filter=["source=*.txt"])[0]["source"] == "moon.txt"
    assert hits(http, "blue pens", filter={"team": "none"}) == []

    told = change(http, 409, add=[{"id": "new", "text": "x"}, pens])
    assert "upsert replaces it" in told["error"]["message"]
    assert http.get("v1/indexes/shop").json()["documents"] == before + 1  # nothing of it was done
    assert change(http, upsert=[{**pens, "text": "Pens are red."}])["updated"] == 1
    assert hits(http, "red pens", mode="lexical")[0]["text"].endswith("Pens are red.")
    assert change(http, documents=[{**pens, "text": "Pens are red."}])["unchanged"] == 1
    listed = {d["id"]: d for d in http.get("v1/indexes/shop/documents").json()["data"]}
    assert listed["pens.md"]["meta"] == {"team": "sales"} and listed["pens.md"]["title"] == "Pens"

    told = change(http, delete=["pens.md"], add=[pens])  # deletes go first
    assert (told["removed"], told["added"]) == (1, 1)
    assert http.delete("v1/indexes/shop/documents/pens.md").json()["removed"] == 1
    assert http.delete("v1/indexes/shop/documents/pens.md").status_code == 400
    assert http.get("v1/indexes/shop").json()["documents"] == before


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({}, "nothing is asked"),
        ({"add": [{"id": "a", "text": " "}]}, "has no text"),
        ({"add": [{"id": "a", "text": "x"}], "upsert": [{"id": "a", "text": "y"}]}, "twice"),
        ({"delete": ["nobody"]}, "no document 'nobody'"),
        ({"add": [{"id": "a", "text": "x", "meta": {"source": "y"}}]}, "metadata key"),
        ({"add": [{"id": "a", "text": "x", "url": "y"}]}, "url is not supported"),
    ],
)
def test_changes_that_cannot_be_leave_all_as_it_was(
    http: httpx.Client, what: dict[str, Any], told: str
) -> None:
    before = http.get("v1/indexes/shop").json()
    assert told in change(http, 400, **what)["error"]["message"]
    assert http.get("v1/indexes/shop").json() == before


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("v1/indexes/nobody/search", {"query": "x"}, 404),
        ("v1/indexes/shop/search", {"query": " "}, 400),
        ("v1/indexes/shop/search", {"query": "x", "k": 0}, 400),
        ("v1/indexes/shop/search", {"query": "x", "mode": "magic"}, 400),
        ("v1/indexes/shop/search", {"query": "x", "filter": ["nonsense"]}, 400),
        ("v1/indexes/nobody/documents", {"delete": ["x"]}, 404),
        ("v1/rerank", {"model": "echo", "query": "x", "documents": ["a"]}, 400),
        ("v1/rerank", {"model": "tiny-colbert", "query": " ", "documents": ["a"]}, 400),
        ("v1/rerank", {"model": "tiny-colbert", "query": "x", "documents": []}, 400),
        ("v1/rerank", {"model": "tiny-colbert", "query": "x", "documents": ["a"] * 1001}, 413),
        ("v1/rerank", {"model": "tiny-colbert", "query": "x", "documents": ["a"], "top_n": 0}, 400),
        ("v1/nowhere", {}, 404),
    ],
)
def test_what_is_refused(http: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


# ---- rerank and embeddings ------------------------------------------------------------------


def test_rerank_is_maxsim_in_the_order_of_cohere_and_jina(
    http: httpx.Client, service: Service
) -> None:
    encoder = service.find("tiny-colbert").engine
    body = {"model": "tiny-colbert", "query": "when do I get my refund", "documents": RANKED}
    told = http.post("v1/rerank", json={**body, "return_documents": True}).json()
    query = encoder.encode_queries([body["query"]])[0]
    scores = retrieval.maxsim(query, encoder.encode_documents(RANKED)) / len(query)
    for result in told["results"]:
        assert result["document"]["text"] == RANKED[result["index"]]
        assert result["relevance_score"] == pytest.approx(
            max(float(scores[result["index"]]), -1.0), abs=1e-5
        )
    order = [result["relevance_score"] for result in told["results"]]
    assert order == sorted(order, reverse=True) and len(order) == len(RANKED)
    assert told["usage"]["total_tokens"] > 0
    jina = {**body, "documents": [{"text": text} for text in RANKED], "top_n": 2}
    best = http.post("v2/rerank", json=jina).json()["results"]
    assert [b["index"] for b in best] == [r["index"] for r in told["results"][:2]]


def test_coheres_own_client_reranks(address: str) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=address.rstrip("/"))
    told = client.rerank(model="tiny-colbert", query="refund", documents=RANKED, top_n=2)
    assert len(told.results) == 2 and told.results[0].relevance_score <= 1


def test_one_vector_for_a_text_is_refused(address: str) -> None:
    with openai.OpenAI(base_url=f"{address}v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError, match="one vector a token") as refused:
            client.embeddings.create(model="tiny-colbert", input="a text")
        assert refused.value.code == "token_vectors"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="nobody", input="a text")


# ---- the OpenAPI page -----------------------------------------------------------------------


OPERATIONS = [
    "GET /v1/models", "GET /v1/models/{name}", "GET /health", "GET /metrics",
    "POST /v1/chat/completions", "POST /v1/audio/transcriptions", "POST /v1/audio/speech",
    "POST /v1/embeddings", "POST /v1/rerank", "POST /v2/rerank", "GET /v1/indexes",
    "GET /v1/indexes/{name}", "POST /v1/indexes/{name}/search", "GET /v1/indexes/{name}/documents",
    "POST /v1/indexes/{name}/documents", "DELETE /v1/indexes/{name}/documents/{document}",
]  # fmt: skip


@pytest.fixture(scope="module")
def operations(address: str) -> dict[str, Any]:
    """Every operation of the page, as schemathesis reads it."""
    schema = schemathesis.openapi.from_url(f"{address}openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{one.method.upper()} {one.path}": one for one in found}


def test_the_page_shows_every_operation(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_request_that_the_page_allows_breaks_the_server(
    operations: dict[str, Any], name: str
) -> None:
    """No 5xx, only statuses and kinds of content that the page names, bodies as it says."""

    @given(case=operations[name].as_strategy())
    @settings(
        max_examples=4 if "speech" in name else 12, deadline=None, derandomize=True, database=None,
        phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def asked(case: schemathesis.Case) -> None:
        # Some of what is generated must exist, or only errors would be seen.
        if "models/" in case.path:
            case.path_parameters["name"] = "echo"
        if "indexes/" in case.path:
            case.path_parameters["name"] = "shop"
        if isinstance(case.body, dict) and case.body.get("model"):
            case.body["model"] = next((m for p, m in MODELS if p in case.path), "echo")
        if "speech" in case.path and isinstance(case.body, dict):
            case.body |= {"seed": 3, "input": "Hi"}  # other ones are spoken for minutes
        answer = case.call_and_validate(
            excluded_checks=[
                # The page says nothing of which bodies are refused, nor of other methods.
                schemathesis.checks.positive_data_acceptance,
                schemathesis.checks.negative_data_rejection,
                schemathesis.checks.unsupported_method,
            ]
        )

        seen.add(answer.status_code)

    seen: set[int] = set()
    asked()
    assert seen & {200, 400} and len(seen) <= 5  # it came as far as our own code


MODELS = [("rerank", "tiny-colbert"), ("embeddings", "tiny-colbert"), ("audio", "tiny-audio")]


def test_the_page_names_our_errors_and_not_fastapis(http: httpx.Client) -> None:
    page = http.get("openapi.json").json()
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            if path.startswith("/v1/") and "requestBody" in operation:
                assert {"400", "404", "413", "429"} <= set(operation["responses"])
