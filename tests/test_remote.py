"""The engine `remote` against real servers: ours, and llama.cpp's with weights made here."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps import cli
from apps.service import Service
from lfm2_mm.backbone import Backbone
from lfm2_mm.engine import open_engine
from lfm2_mm.engines.remote import Remote
from lfm2_mm.errors import BadInput, ContextExceeded, LfmError, NotAvailable, UnknownCheckpoint
from lfm2_mm.exports.gguf_file import write_gguf
from lfm2_mm.exports.vocabulary import dummy_vocabulary
from lfm2_mm.types import Done, Image, Message, Sampling, TextDelta, text_of
from tests import served, tiny

GREEDY = Sampling(temperature=0.0, max_tokens=12)
HELLO = [Message.system("Be kind."), Message.user("Hello, how are you? 你好 🙂")]
KEY = "secret"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(served.models(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served.serving(service, key=KEY) as address:
        yield f"{address}v1"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp's own server over a tiny model. Its vocabulary is bytes, its template bare text."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="no llama.cpp server: xllamacpp is missing")
    folder = tmp_path_factory.mktemp("llama")
    backbone = Backbone.open(tiny.lfm2_folder(folder / "tiny"), device="cpu", dtype="fp32")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    words = replace(dummy_vocabulary(backbone.config.vocab_size), template=template)
    tensors = backbone.state_tensors()
    write_gguf(folder / "tiny.gguf", backbone.config, tensors.__getitem__, "f32", words)
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "tiny.gguf")
    params.n_ctx, params.n_parallel = 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.fit_params, params.verbosity = False, 0
    params.hostnames, params.port = ["127.0.0.1"], free_port()
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server  # it stops with its last reference


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def remote(address: str) -> Iterator[Remote]:
    engine = Remote(address, "tiny-chat", KEY)
    yield engine
    engine.close()


# ---- our own server -------------------------------------------------------------------------


def test_what_a_server_says_is_what_its_engine_says(remote: Remote, service: Service) -> None:
    there = list(remote.stream(HELLO, GREEDY))
    here = list(service.models["tiny-chat"].engine.stream(HELLO, GREEDY))
    assert text_of(there) == text_of(here)
    assert isinstance(there[-1], Done) and isinstance(here[-1], Done)
    assert there[-1].reason == here[-1].reason
    assert there[-1].usage.prompt_tokens == here[-1].usage.prompt_tokens
    assert there[-1].usage.completion_tokens == here[-1].usage.completion_tokens
    assert there[-1].timings.first_token_s > 0


def test_the_servers_advice_is_known_and_holds(remote: Remote, service: Service) -> None:
    engine = service.models["tiny-chat"].engine
    assert remote.advice == engine.advice
    before, engine.advice = engine.advice, Sampling(temperature=0.0, max_tokens=3)
    try:
        *_, done = remote.stream(HELLO)
    finally:
        engine.advice = before
    assert isinstance(done, Done) and done.usage.completion_tokens <= 3


def test_pictures_arrive(address: str) -> None:
    picture = Image.open(np.full((60, 80, 3), (200, 30, 30), np.uint8))
    engine = Remote(address, "tiny-vl", KEY)
    *_, done = engine.stream([Message.user(picture, "What is this?")], GREEDY)
    assert isinstance(done, Done) and done.usage.image_tokens > 0
    engine.close()


def test_without_a_name_the_first_that_can_chat(address: str) -> None:
    engine = Remote(address, key=KEY)
    assert engine.name == "tiny-vl"
    engine.close()


def test_closing_the_stream_stops_the_servers_work(remote: Remote, service: Service) -> None:
    lane = service.models["tiny-chat"].lane
    stream = remote.stream(HELLO, Sampling(temperature=1.0, max_tokens=900, seed=0))
    while not isinstance(next(stream), TextDelta):
        pass
    stream.close()  # type: ignore[attr-defined]
    for _ in range(500):
        if not lane.jobs:
            break
        threading.Event().wait(0.01)
    assert lane.jobs == 0


def test_a_server_that_is_not_there_is_told_with_the_way_out() -> None:
    with pytest.raises(NotAvailable, match="lfm2-mm serve"):
        Remote(f"http://127.0.0.1:{free_port()}/v1")


def test_a_wrong_key_a_wrong_name_a_wrong_address(address: str) -> None:
    with pytest.raises(NotAvailable, match="LFM2_MM_API_KEY"):
        Remote(address, key="wrong")
    with pytest.raises(UnknownCheckpoint, match="tiny-chat"):
        Remote(address, "nobody", KEY)
    with pytest.raises(NotAvailable, match="no list of models"):
        Remote(address.removesuffix("/v1") + "/health?", key=KEY)
    with pytest.raises(BadInput, match="no server's address"):
        Remote("localhost:8080")
    with pytest.raises(BadInput, match="--base-url"):
        open_engine("tiny", engine="remote")


def test_the_servers_refusals_keep_their_kind(remote: Remote) -> None:
    with pytest.raises(ContextExceeded, match="tokens long"):
        list(remote.stream([Message.user("word " * 3_000)], GREEDY))
    picture = Image.open(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(BadInput, match="reads text"):
        list(remote.stream([Message.user(picture, "What?")], GREEDY))
    with pytest.raises(BadInput, match="empty"):
        remote.stream([], GREEDY)


# ---- llama.cpp ------------------------------------------------------------------------------


def test_llama_cpp_answers_the_same_engine(llama: str) -> None:
    engine = open_engine(llama)
    first = list(engine.stream(HELLO, GREEDY))
    done = first[-1]
    assert isinstance(done, Done) and done.usage.prompt_tokens > 0
    assert 1 <= done.usage.completion_tokens <= 12
    assert text_of(engine.stream(HELLO, GREEDY)) == text_of(first)
    seeded = Sampling(temperature=1.5, max_tokens=12, seed=3, repetition_penalty=1.3, top_k=40)
    assert text_of(engine.stream(HELLO, seeded)) == text_of(engine.stream(HELLO, seeded))
    engine.close()


def test_llama_cpp_refuses_in_its_own_words(llama: str) -> None:
    engine = open_engine(llama)
    with pytest.raises(ContextExceeded):
        list(engine.stream([Message.user("word " * 400)], GREEDY))
    picture = Image.open(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(LfmError, match="refused"):
        list(engine.stream([Message.user(picture, "What?")], GREEDY))
    engine.close()


# ---- at the command line --------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.main([*argv, "--json"]) == code
    told = capsys.readouterr()
    return json.loads(told.out) if code == 0 else told.err


def test_chat_and_see_elsewhere(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("LFM2_MM_API_KEY", KEY)
    said = run(capsys, "chat", "one two three", "--base-url", address, "--model", "echo")
    assert said["text"] == "one two three" and said["usage"]["completion_tokens"] == 3
    same = run(capsys, "chat", "one two three", "--model", f"{address}#echo")
    assert same["text"] == said["text"]
    from PIL import Image as Pil

    Pil.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    how = ["--engine", "remote", "--base-url", address, "--model", "tiny-vl", "--max-tokens", "3"]
    seen = run(capsys, "see", str(tmp_path / "a.png"), "--prompt", "What?", *how)
    assert seen["usage"]["image_tokens"] > 0 and seen["images"][0]["width"] == 40
    told = run(capsys, "see", str(tmp_path / "a.png"), "--tiles", "2", *how, code=2)
    assert "the server decides" in told
    assert "no server answers" in run(
        capsys, "chat", "x", "--base-url", f"http://127.0.0.1:{free_port()}/v1", code=1
    )
