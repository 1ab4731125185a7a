"""Documents encoded by a server, llama.cpp's or vLLM's; everything else is the local checkpoint's.

What is sent are our own ids, markers included, so no server's tokenizer has a say; what comes back
is made length 1 and loses the rows of the skip list here. Queries are short, and their expansion
needs ids that nobody looks at, which no server takes: they are encoded on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2_mm.address import checked_key, checked_url
from lfm2_mm.errors import BadInput, NotAvailable
from retrieval.colbert_tokenizer import Marked, Token
from retrieval.encoder import Encoder, Progress, open_encoder

if TYPE_CHECKING:
    import httpx

    from retrieval.lfm2_encoder import Lfm2Encoder

AT_ONCE = 32  # texts of one request
PATIENCE = 600.0  # seconds for its answer
TRIES, PAUSE = 3, 1.0  # of a request, and the seconds between
PROBE = "The server has to give the vectors of this checkpoint, and of no other one."
LEAST = 0.97  # cosine of the probe's vectors: rounded weights pass, another model does not
LIKE = "http://127.0.0.1:8080"  # an address, for messages
ROUTES = ("/pooling", "/embeddings")  # vLLM's; llama.cpp's own, with the tokens apart


class RemoteEncoder:
    """The `Encoder` of a local checkpoint whose documents are encoded at `url`."""

    def __init__(self, local: Lfm2Encoder, url: str, key: str | None = None) -> None:
        """Raises NotAvailable where no such server answers, BadInput where it has another model."""
        self.local, self.url = local, url
        self.name, self.dim = local.name, local.dim
        self.document_length, self.query_length = local.document_length, local.query_length
        self._client = _client(url, key)
        self._model = self._served_model()
        self._route = self._find_route()
        self._require_same()

    @property
    def fingerprint(self) -> str:
        return self.local.fingerprint

    def encode_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """On this machine."""
        return self.local.encode_queries(texts)

    def encode_documents(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> list[np.ndarray]:
        """(tokens_i, dim) for each document, in the order of `texts`; punctuation left out."""
        vectors: list[np.ndarray] = []
        for start in range(0, len(texts), AT_ONCE):
            batch = self.local.tokenizer.documents(texts[start : start + AT_ONCE])
            vectors += self._encode(batch)
            if progress is not None:
                progress(len(batch))
        return vectors

    def count_tokens(self, text: str) -> int:
        return self.local.count_tokens(text)

    def query_tokens(self, text: str) -> list[Token]:
        return self.local.query_tokens(text)

    def document_tokens(self, text: str) -> list[Token]:
        return self.local.document_tokens(text)

    def _encode(self, batch: Sequence[Marked]) -> list[np.ndarray]:
        answer = self._post(self._route, self._body([m.ids for m in batch]))
        rows = list(_vectors(answer))
        shapes = [(len(m.ids), self.dim) for m in batch]
        if [row.shape for row in rows] != shapes:
            raise BadInput(
                f"{self.url} gave vectors of the shapes {[row.shape for row in rows][:3]} for "
                f"{shapes[:3]}: it must give one vector of {self.dim} numbers a token"
            )
        return [_length_one(row, self.url)[m.keep] for row, m in zip(rows, batch, strict=True)]

    def _body(self, ids: list[list[int]]) -> dict[str, Any]:
        if self._route == ROUTES[0]:
            return {"model": self._model, "input": ids, "task": "token_embed"}
        return {"input": ids}

    def _served_model(self) -> str | None:
        told = self._send("GET", "/v1/models", None)
        try:
            return str(told.json()["data"][0]["id"]) if told.status_code == 200 else None
        except (ValueError, KeyError, IndexError, TypeError):  # a server need not have this route
            return None

    def _find_route(self) -> str:
        """The first of ROUTES that the server has."""
        for route in ROUTES:
            self._route = route
            body = self._body([self.local.tokenizer.documents([PROBE])[0].ids])
            if self._send("POST", route, body).status_code != 404:
                return route
        raise NotAvailable(
            f"{self.url} has neither {' nor '.join(ROUTES)}: start llama-server with --embeddings "
            "--pooling none, or vLLM with --runner pooling (docs/deploy.md)"
        )

    def _require_same(self) -> None:
        """Raise BadInput unless the server gives this checkpoint's vectors."""
        (theirs,), (ours,) = (one.encode_documents([PROBE]) for one in (self, self.local))
        cosine = float((ours * theirs).sum(-1).min())
        if cosine < LEAST:
            raise BadInput(
                f"{self.url} serves another model than {self.name}: their vectors of one text have "
                f"a cosine of {cosine:.3f}; give its checkpoint by --model"
            )

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        answer = self._send("POST", route, body)
        if answer.status_code != 200:
            raise BadInput(
                f"{self.url}{route} answered with status {answer.status_code}: {answer.text[:200]}"
            )
        try:
            return answer.json()
        except ValueError as error:
            raise BadInput(
                f"{self.url}{route} answered what is no JSON ({answer.text[:40]!r}): give the "
                "address of a llama-server or of vLLM (docs/deploy.md)"
            ) from error

    def _send(self, method: str, route: str, body: dict[str, Any] | None) -> httpx.Response:
        import httpx

        for left in reversed(range(TRIES)):
            try:
                return self._client.request(method, route, json=body)
            except httpx.TransportError as error:
                if not left:
                    raise NotAvailable(
                        f"{self.url} cannot be reached ({error}): start the server, or leave "
                        "--encoder-url away to encode here"
                    ) from error
            time.sleep(PAUSE)
        raise AssertionError("unreachable")


def open_remote(
    url: str, name: str, *, key: str | None = None, device: str, dtype: str, offline: bool
) -> Encoder:
    """The encoder of the local checkpoint `name`, its documents encoded at `url`."""
    from retrieval.lfm2_encoder import Lfm2Encoder

    local = open_encoder(name, device=device, dtype=dtype, offline=offline)
    if not isinstance(local, Lfm2Encoder):
        raise BadInput(f"{name} is no LFM2 checkpoint; --encoder-url goes with those")
    return RemoteEncoder(local, url, key)


def _client(url: str, key: str | None) -> httpx.Client:
    import httpx

    headers = {"Authorization": f"Bearer {checked_key(key)}"} if key is not None else {}
    return httpx.Client(base_url=checked_url(url, LIKE), headers=headers, timeout=PATIENCE)


def _vectors(answer: Any) -> Iterator[np.ndarray]:
    """(tokens, dim) of each text, in order: vLLM's `data`, llama.cpp's `embedding`."""
    try:
        rows = answer["data"] if isinstance(answer, dict) else answer
        for row in sorted(rows, key=lambda row: row["index"]):
            yield np.array(row["data"] if "data" in row else row["embedding"], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"the server's answer holds no vectors: {error!r}") from error


def _length_one(rows: np.ndarray, url: str) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise BadInput(f"{url} gave vectors that are zero or not finite")
    result: np.ndarray = rows / lengths
    return result
