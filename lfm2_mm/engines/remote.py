"""A conversation with any OpenAI-compatible server: ours, vLLM, llama.cpp's. Holds a connection.

What a server can see or hear only it knows, so every part is sent, and refused there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from lfm2_mm import checkpoint, wire
from lfm2_mm.address import checked_key, checked_url
from lfm2_mm.errors import BadInput, ContextExceeded, LfmError, NotAvailable, UnknownCheckpoint
from lfm2_mm.types import (
    Audio,
    Done,
    Event,
    Image,
    Message,
    Sampling,
    Text,
    TextDelta,
    Timings,
    Usage,
)

CONNECT_S, SILENT_S = 5.0, 600.0  # until it answers; between two pieces of a reply
TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")


class Remote:
    """The model `name` of the server at `base_url`. Several streams may be open at a time."""

    accepts: frozenset[type] = frozenset({Text, Image, Audio})

    def __init__(self, base_url: str, name: str | None = None, key: str | None = None) -> None:
        """base_url: with its `/v1`. name: None takes the first model that can chat.

        Raises NotAvailable where no such server answers, UnknownCheckpoint for a model it lacks.
        """
        self.base_url = checked_url(base_url)
        headers = {"authorization": f"Bearer {checked_key(key)}"} if key is not None else {}
        timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
        # No proxy and no .netrc of the environment: what is asked goes where it was told to go.
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=False)
        try:
            self.name, self.advice, self._llama = self._chosen(name)
        except BaseException:
            self._http.close()
            raise

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[Event]:
        """As Engine.stream; closing it ends the request, and so the server's work."""
        if not messages:
            raise BadInput("an empty conversation was given; at least one message is needed")
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [wire.write_message(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling is not None:  # else the server's own advice holds
            body |= wire.write_sampling(sampling, llama=self._llama)
        return self._reply(body)

    def _reply(self, body: dict[str, Any]) -> Iterator[Event]:
        start, came = time.perf_counter(), []
        with self._asked("POST", "/chat/completions", body) as answer:
            try:
                for event in wire.read_events(wire.read_sse(answer.iter_lines())):
                    if isinstance(event, TextDelta):
                        came.append(time.perf_counter())
                        yield event
                    elif isinstance(event, Done):
                        yield Done(event.reason, counted(event.usage, came), timed(start, came))
                    else:
                        yield event
            except httpx.HTTPError as error:
                raise self._lost(error) from error

    def _chosen(self, name: str | None) -> tuple[str, Sampling, bool]:
        """The model to ask, its advice where that is told, and whether llama.cpp is at work."""
        with self._asked("GET", "/models") as answer:
            try:
                listed = json.loads(answer.read())["data"]
                known = {str(one["id"]): one for one in listed}
            except (ValueError, KeyError, TypeError) as error:
                raise NotAvailable(
                    f"{self.base_url}/models is no list of models; give the address of an "
                    "OpenAI-compatible server, with its /v1"
                ) from error
        llama = any(one.get("owned_by") == "llamacpp" for one in known.values())
        chat = [one for one, told in known.items() if told.get("kind", "chat") != "colbert"]
        name = name or next(iter(chat), None)
        # llama.cpp has one model, and takes any name for it.
        if name is None or not (name in known or llama):
            raise UnknownCheckpoint(
                f"no model {name!r} at {self.base_url}; there are {', '.join(chat) or 'none'}"
            )
        told = known.get(name, {}).get("sampling")
        return name, wire.read_sampling(told or {}, Sampling()), llama

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> _Answer:
        return _Answer(self, self._http.build_request(method, self.base_url + path, json=body))

    def send(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body still to be read. Raises what the server's refusal means."""
        try:
            answer = self._http.send(request, stream=True)
            if answer.is_success:
                return answer
            try:
                raise self._refused(answer.status_code, answer.read())
            finally:
                answer.close()
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def _refused(self, status: int, body: bytes) -> LfmError:
        told: Any = body.decode(errors="replace")[:300].strip() or f"status {status}"
        error: Any = None
        with suppress(ValueError):
            told = json.loads(body)
            error = told.get("error", told) if isinstance(told, dict) else told
        message = f"{self.base_url} refused: {wire.told(error if error is not None else told)}"
        if status in (401, 403):
            return NotAvailable(f"{message}; give its key with --api-key or LFM2_MM_API_KEY")
        details = error if isinstance(error, dict) else {}
        if {details.get("code"), details.get("type")} & set(TOO_LONG):
            return ContextExceeded(message)
        if status == 404:
            return UnknownCheckpoint(message)
        return NotAvailable(message) if status >= 500 or status == 429 else BadInput(message)

    def _lost(self, error: httpx.HTTPError) -> NotAvailable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NotAvailable(
                f"no server answers at {self.base_url}: start one (`lfm2-mm serve`), or give its "
                "address with --base-url"
            )
        return NotAvailable(f"the connection to {self.base_url} was lost: {error}")

    def close(self) -> None:
        self._http.close()


class _Answer:
    """A request that is sent on entering and whose connection is given back on leaving."""

    def __init__(self, remote: Remote, request: httpx.Request) -> None:
        self._remote, self._request = remote, request

    def __enter__(self) -> httpx.Response:
        self._response = self._remote.send(self._request)
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()


def counted(usage: Usage, came: Sequence[float]) -> Usage:
    """The server's count, or where it told none, the pieces that came."""
    known = usage.prompt_tokens or usage.completion_tokens
    return usage if known else Usage(0, len(came))


def timed(start: float, came: Sequence[float]) -> Timings:
    """As seen from here, the way to the server included."""
    if not came:
        return Timings(time.perf_counter() - start, 0.0)
    span = came[-1] - came[0]
    return Timings(came[0] - start, (len(came) - 1) / span if span > 0 else 0.0)


def open(name_or_path: str | Path, *, base_url: str | None = None, **how: Any) -> Remote:
    """A model by name at `base_url`, or by an address: `http://host:8080/v1#name`.

    The key is `api_key`, or what LFM2_MM_API_KEY holds. Where it runs, the server decides.
    """
    name: str | None = str(name_or_path) or None
    if base_url is None:
        if "://" not in str(name):
            raise BadInput("the engine `remote` needs --base-url, such as http://127.0.0.1:8080/v1")
        base_url, _, model = str(name).partition("#")
        name = model or None
    key: str | None = how.get("api_key")
    return Remote(base_url, name, checkpoint.settings().key if key is None else key)
