"""llama.cpp's own server inside of this process, through the xllamacpp wheel. Knows no messages.

It listens on a loopback port of its own, which a key made on the spot guards: other users of the
machine get nothing from it. Its HTTP interface is what is used, since it alone tells all logits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lfm2_mm.device import usable_cores
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.extras import need

MAGIC = b"GGUF"
TAKEN = (signal.SIGINT, signal.SIGTERM)
SIGACTION = 1024  # bytes; more than the structure of any system
PATIENCE = 3600.0  # seconds: reading a long prompt may take many minutes


class Llama:
    """One GGUF file in llama.cpp. Made once, closed once; threads may share it."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        batch: int = 512,
        vectors: bool = False,
        threads: int | None = None,
        mmproj: Path | None = None,
        image_tokens: tuple[int, int] | None = None,
    ) -> None:
        """vectors: one vector a token instead of text; `batch` is then the longest input.
        mmproj: the file that sees pictures. image_tokens: fewest and most of one that is not cut.
        Flash attention is off with it: its sums in 16 bits are too coarse for a thousand patches.

        Raises MissingExtra, CheckpointDamaged where llama.cpp refuses the file.
        """
        xllamacpp = need("gguf", "xllamacpp")
        require_gguf(path)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = context, 1
        params.n_batch = params.n_ubatch = batch
        params.cpuparams.n_threads = threads or usable_cores()
        params.cpuparams_batch.n_threads = threads or usable_cores()
        params.fit_params = params.warmup = False
        params.n_ctx_checkpoints = params.cache_ram_mib = 0  # nothing is kept for other requests
        params.cache_idle_slots = False
        params.verbosity = -1
        params.hostnames, params.port = ["127.0.0.1"], 0
        self.key = secrets.token_urlsafe(24)
        params.api_keys = [self.key]
        if vectors:
            params.embedding = True
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
        if mmproj is not None:
            params.mmproj.path = str(mmproj)
            off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.flash_attn_type = off
        if image_tokens is not None:
            params.image_min_tokens, params.image_max_tokens = image_tokens
        try:
            with _signals_kept(), _quiet():
                self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise CheckpointDamaged(f"llama.cpp cannot open {path}: {error}") from error
        self.address: str = self._server.listening_address
        self._client = _client(self.address, self.key)

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to one request. Raises BadInput with llama.cpp's own words."""
        answer = self._client.post(route, json=body)
        return _result(answer.status_code, answer.json())

    def get(self, route: str) -> Any:
        answer = self._client.get(route)
        return _result(answer.status_code, answer.json())

    def stream(self, route: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of one request as they come; closing the iterator stops llama.cpp's work."""
        with self._client.stream("POST", route, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                answer.read()
                _result(answer.status_code, answer.json())
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _result(200, json.loads(line.removeprefix("data: ")))

    def ids(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Ids by the file's own tokenizer; what spells a special token is one if `special`."""
        body = {"content": text, "add_special": bos, "parse_special": special}
        found: list[int] = self.post("/tokenize", body)["tokens"]
        return found

    def close(self) -> None:
        """Stop the server and free the weights."""
        self._client.close()
        with _quiet():
            self._server = None


def mmproj_of(path: Path) -> Path:
    """Where the part of a checkpoint that sees lies beside its language model."""
    return path.with_name(f"mmproj-{path.name}")


def require_gguf(path: Path) -> None:
    """Raise BadInput unless the file begins as a GGUF file does: llama.cpp only says no."""
    if not path.is_file():
        raise BadInput(f"{path} is no file; `lfm2-mm export NAME --to gguf -o FILE` makes one")
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise BadInput(f"{path} is no GGUF file: it does not begin with the letters GGUF")


def _client(address: str, key: str) -> Any:
    import httpx

    return httpx.Client(
        base_url=address,
        headers={"Authorization": f"Bearer {key}"},
        timeout=PATIENCE,
        trust_env=False,  # a proxy has no business on this machine
        # llama.cpp closes idle connections, and one may close while the next request is written.
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def _result(status: int, answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        raise BadInput(f"llama.cpp refused: {answer['error'].get('message', answer['error'])}")
    if status != 200:
        raise BadInput(f"llama.cpp answered with status {status}: {answer}")
    return answer


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """llama.cpp's server takes Ctrl-C for itself; here it stays who had it, in any thread."""
    if os.name == "nt":
        yield
        return
    libc = ctypes.CDLL(None)  # Python's own signal.signal works in the main thread alone
    before = {number: ctypes.create_string_buffer(SIGACTION) for number in TAKEN}
    for number, held in before.items():
        libc.sigaction(number, None, held)
    try:
        yield
    finally:
        for number, held in before.items():
            libc.sigaction(number, held, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp writes to the process's own stderr while it opens and closes; let it not."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
