"""Who may come in, and with how much: key, origin, size. Pure ASGI, in front of every route."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.replies import refusal

OPEN = ("/health",)  # answered without a key
SUBPROTOCOL = "openai-insecure-api-key."  # how a browser gives its key to a WebSocket
LOCAL = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)
MOST_BYTES = 64 << 20  # of a request's body
MOST_HELD = 512 << 20  # of all bodies that are held at a time


class Gate:
    """Refuses requests without the key, from pages of other origins, or with too large a body.

    A key is given as `Authorization: Bearer KEY`, by a browser as password of a Basic login, or as
    WebSocket subprotocol. `origins` are those whose pages may ask beside the server's own.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        origins: Sequence[str] = (),
        loopback: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """loopback: only this machine is served, so only its own names are taken as host."""
        self.app, self.key, self.origins = app, key, tuple(origins)
        self.loopback, self.most_bytes = loopback, most_bytes
        self.most_held, self._held = MOST_HELD, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self.loopback and not LOCAL.fullmatch(headers.get("host", "")):
            # A name that an attacker lets resolve to loopback would make his page our own.
            told = refusal(403, f"this server is not called {headers.get('host')!r}")
            await told(scope, receive, send)
        elif not self._same_origin(headers):
            await refusal(403, f"pages of {headers['origin']} may not ask here")(
                scope, receive, send
            )
        elif not self._known(scope["path"], headers):
            login = {"www-authenticate": 'Basic realm="lfm2-mm", Bearer'}
            await refusal(401, "an API key is needed: Authorization: Bearer KEY", headers=login)(
                scope, receive, send
            )
        elif scope["type"] == "http" and scope["path"].startswith(("/v1/", "/v2/")):
            body = Body(self, headers, receive)
            try:
                await self.app(scope, body.receive, send)
            finally:
                self._held -= body.seen
        else:
            await self.app(scope, receive, send)

    def _same_origin(self, headers: Headers) -> bool:
        """A page elsewhere must not use a server that listens on loopback only for its visitor."""
        origin = headers.get("origin")
        if origin is None or origin in self.origins or "*" in self.origins:
            return True
        return urlsplit(origin).netloc == headers.get("host")

    def _known(self, path: str, headers: Headers) -> bool:
        if self.key is None or path in OPEN:
            return True
        return any(hmac.compare_digest(given, self.key.encode()) for given in keys_of(headers))

    def hold(self, count: int) -> None:
        """Count bytes that a request keeps until it is answered. Raises 429 where they are too
        many with those of the others."""
        self._held += count
        if self._held > self.most_held:
            raise HTTPException(
                429, "the bodies of other requests fill the memory", {"retry-after": "1"}
            )


class Body:
    """One request's body, counted as it comes in. Raises 413 where it is too large."""

    def __init__(self, gate: Gate, headers: Headers, receive: Receive) -> None:
        self._gate, self._receive = gate, receive
        told = headers.get("content-length", "")
        self._told = int(told) if told.isdecimal() else 0
        self.seen = 0

    async def receive(self) -> Message:
        most = self._gate.most_bytes
        if self._told > most:
            raise HTTPException(413, f"the body is larger than {most >> 20} MiB")
        message = await self._receive()
        count = len(message.get("body", b""))
        self.seen += count
        self._gate.hold(count)
        if self.seen > most:
            raise HTTPException(413, f"the body is larger than {most >> 20} MiB")
        return message


def keys_of(headers: Headers) -> list[bytes]:
    """The keys that a request gives, in whichever way."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    protocols = [p.strip() for p in headers.get("sec-websocket-protocol", "").split(",")]
    keys = [p.removeprefix(SUBPROTOCOL) for p in protocols if p.startswith(SUBPROTOCOL)]
    if kind.lower() == "bearer":
        keys.append(given.strip())
    found = [key.encode("latin-1") for key in keys]  # as Starlette decoded them
    if kind.lower() == "basic":
        with suppress(binascii.Error):
            found.append(base64.b64decode(given, validate=True).partition(b":")[2])
    return found
