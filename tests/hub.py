"""A model hub on this machine: real HTTP with ranges, and a connection that can break."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """One repository at one commit, and what was asked of it."""

    repo: str
    files: dict[str, bytes]
    break_after: int | None = None  # bytes of a file's body, then the connection is closed
    status: int = 200  # of every answer
    ranges: bool = True  # whether parts of a file are given
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def entry(self, name: str) -> dict[str, object]:
        body = self.files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        row: dict[str, object] = {"size": len(body), "oid": oid, "blobId": oid}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(body).hexdigest()
            row["lfs"] = {"size": len(body), "sha256": sha256, "oid": sha256, "pointerSize": 134}
        return row

    def etag(self, name: str) -> str:
        row = self.entry(name)
        return row["lfs"]["sha256"] if "lfs" in row else str(row["oid"])  # type: ignore[index]

    def bodies_sent(self) -> list[str]:
        """Files whose bytes were asked for, with the range."""
        return [f"{p.split('/')[-1]}{r}" for m, p, r in self.asked if m == "GET" and "resolve" in p]


def _handler(hub: Repository) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            url = urlsplit(self.path)
            hub.asked.append((self.command, url.path, self.headers.get("Range", "")))
            if hub.status != 200:
                self.send(b"", hub.status)
            elif url.path.startswith(f"/{hub.repo}/resolve/{COMMIT}/"):
                self.file(url.path.split("/", 5)[5])
            elif url.path.startswith(f"/api/models/{hub.repo}/tree/"):
                rows = [{"type": "file", "path": n} | hub.entry(n) for n in hub.files]
                self.send(json.dumps(rows).encode())
            elif url.path == f"/api/models/{hub.repo}":
                assert parse_qs(url.query).get("blobs"), "sizes were not asked for"
                rows = [{"rfilename": n} | hub.entry(n) for n in hub.files]
                info = {"id": hub.repo, "sha": COMMIT, "siblings": rows}
                self.send(json.dumps(info | {"cardData": {"license": "apache-2.0"}}).encode())
            else:
                self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})

        def file(self, name: str) -> None:
            body, first = hub.files[name], 0
            headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": COMMIT}
            asked = self.headers.get("Range", "")
            if asked and hub.ranges:
                first = int(asked.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.send(body[first:], 206 if first else 200, headers, hub.break_after)

        def send(
            self,
            body: bytes,
            status: int = 200,
            headers: dict[str, str] | None = None,
            break_after: int | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:break_after])
                self.close_connection = break_after is not None and break_after < len(body)

    return Handler


@contextmanager
def serve(hub: Repository) -> Iterator[str]:
    """The address of a server that runs while the block does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
