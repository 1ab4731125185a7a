"""Documents encoded by a real llama-server are ours, and a server that is none is told apart."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.cli import main
from lfm2_mm.errors import BadInput, NotAvailable
from lfm2_mm.exports import to_gguf
from retrieval import exporting
from retrieval.encoder import open_encoder
from retrieval.lfm2_encoder import Lfm2Encoder
from retrieval.remote_encoder import RemoteEncoder, open_remote

TEXTS = ["How do 2 threads share 1 lock? They don't: one waits!", "a", "", "Prüfe 你好, (Äpfel)."]
HOW: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "offline": True}


@pytest.fixture(scope="module")
def local() -> Lfm2Encoder:
    opened = open_encoder("nano-colbert", **HOW)
    assert isinstance(opened, Lfm2Encoder)
    return opened


@pytest.fixture(scope="module")
def server(local: Lfm2Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """llama.cpp's own server over an exported nano-colbert."""
    for library in ("gguf", "xllamacpp"):
        pytest.importorskip(library, reason=f"gguf: {library} is not installed")
    from lfm2_mm.llama import Llama

    path = tmp_path_factory.mktemp("server") / "nano.gguf"
    to_gguf.write(exporting.open_source(local.folder, "nano-colbert"), path, "f16", 0)
    llama = Llama(path, context=512, batch=512, vectors=True, threads=1)
    yield llama
    llama.close()


def test_documents_of_a_real_server_are_ours(local: Lfm2Encoder, server: Any) -> None:
    remote = open_remote(server.address, "nano-colbert", key=server.key, **HOW)
    texts = TEXTS + [f"passage number {n} of many." for n in range(40)]
    told: list[int] = []
    for ours, theirs in zip(
        local.encode_documents(texts), remote.encode_documents(texts, told.append), strict=True
    ):
        assert theirs.shape == ours.shape  # the skip list is ours
        np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(theirs, ours, atol=5e-3)  # weights and cache in 16 bits
    assert sum(told) == len(texts)
    (ours,), (theirs,) = local.encode_queries(["who waits?"]), remote.encode_queries(["who waits?"])
    np.testing.assert_array_equal(ours, theirs)
    assert remote.fingerprint == local.fingerprint


def test_an_index_made_at_a_server_is_searched_without_it(
    server: Any, tmp_path: Path, capsys
) -> None:
    (tmp_path / "a.md").write_text("Two threads share a lock; one of them waits.")
    (tmp_path / "b.md").write_text("Butter a cake tin and whisk the eggs.")
    place = ["--index", str(tmp_path / "index")]
    at = ["--encoder-url", server.address, "--encoder-key", server.key]
    files = [str(tmp_path / "a.md"), str(tmp_path / "b.md")]
    assert main(["index", *files, *place, *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 2
    assert main(["search", "baking", *place, "--mode", "colbert", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["source"].endswith("b.md")


def test_another_model_or_no_server_is_told(server: Any, tmp_path: Path, monkeypatch) -> None:
    from tests import tiny

    other = tiny.colbert_folder(tmp_path / "other", dim=128)
    with pytest.raises(BadInput, match=r"serves another model|answered with status"):
        open_remote(server.address, str(other), key=server.key, **HOW)
    with pytest.raises(BadInput, match="status 401"):
        open_remote(server.address, "nano-colbert", key="wrong", **HOW)
    with pytest.raises(BadInput, match="no server.s address; it is like"):
        open_remote("localhost:8080", "nano-colbert", **HOW)
    monkeypatch.setattr("retrieval.remote_encoder.PAUSE", 0.0)
    with pytest.raises(NotAvailable, match="cannot be reached"):
        open_remote("http://127.0.0.1:9", "nano-colbert", **HOW)


class Pooling(BaseHTTPRequestHandler):
    """vLLM's `/pooling` as its documentation has it; vLLM itself cannot be installed beside us."""

    encoder: Lfm2Encoder

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "served-name", "owned_by": "vllm"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/pooling" and asked["model"] == "served-name"
        assert asked["task"] == "token_embed"
        rows = [self._vectors(ids) for ids in asked["input"]]
        data = [
            {"index": place, "object": "pooling", "data": row} for place, row in enumerate(rows)
        ]
        self._answer({"object": "list", "data": data[::-1]})

    def _vectors(self, ids: list[int]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            hidden = self.encoder.backbone(self.encoder.backbone.embed(torch.tensor([ids])))
            return self.encoder.head(hidden)[0].tolist()

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("body", [b"hello", b"", b"null", b"[]", b"{}", b'{"data": [3]}', b"\xff"])
def test_a_server_that_answers_something_else_is_told(local: Lfm2Encoder, body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        log_message = Pooling.log_message

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

    with HTTPServer(("127.0.0.1", 0), Other) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            with pytest.raises(BadInput, match="no JSON|no vectors|gave vectors"):
                RemoteEncoder(local, f"http://127.0.0.1:{http.server_port}")
        finally:
            http.shutdown()
            thread.join()


def test_the_pooling_form_is_understood(local: Lfm2Encoder) -> None:
    Pooling.encoder = local
    with HTTPServer(("127.0.0.1", 0), Pooling) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            remote = RemoteEncoder(local, f"http://127.0.0.1:{http.server_port}")
            for ours, theirs in zip(
                local.encode_documents(TEXTS), remote.encode_documents(TEXTS), strict=True
            ):
                np.testing.assert_allclose(theirs, ours, atol=1e-5)
        finally:
            http.shutdown()
            thread.join()
