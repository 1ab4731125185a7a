"""Who may come in: key, origin and size, for requests and WebSockets."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, Request, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse

from apps import server
from apps.gate import SUBPROTOCOL
from apps.service import Service

KEY = "söcret"


def client(**how: object) -> TestClient:
    """The real app with two routes to knock at."""
    router = APIRouter()

    @router.websocket("/v1/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("in")
        await socket.close()

    @router.post("/v1/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    app = server.build(Service([]), [router], **how)  # type: ignore[arg-type]
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.fixture
def locked() -> TestClient:
    return client(key=KEY)


def basic(key: str) -> str:
    return f"Basic {base64.b64encode(f'anyone:{key}'.encode()).decode()}"


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Basic !", basic("wrong"), f"Token {KEY}"])
def test_without_the_key_nothing_is_told(locked: TestClient, given: str) -> None:
    headers = {"authorization": given.encode()} if given else {}
    for path in ("/v1/models", "/openapi.json", "/metrics", "/nowhere"):
        answer = locked.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "Basic" in answer.headers["www-authenticate"]


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer  {KEY}", basic(KEY)])
def test_the_key_opens(locked: TestClient, given: str) -> None:
    headers = {"authorization": given.encode()}
    assert locked.get("/openapi.json", headers=headers).status_code == 200


def test_health_needs_no_key(locked: TestClient) -> None:
    assert locked.get("/health").status_code == 200


def test_sockets_need_the_key_too() -> None:
    locked = client(key="K")
    with pytest.raises(WebSocketDenialResponse) as refused, locked.websocket_connect("/v1/socket"):
        pass
    assert refused.value.status_code == 401
    protocols = ["realtime", f"{SUBPROTOCOL}K"]
    with locked.websocket_connect("/v1/socket", subprotocols=protocols) as socket:
        assert socket.receive_text() == "in"


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        (None, (), 200),
        ("http://127.0.0.1:7860", (), 200),
        ("http://127.0.0.1:1", (), 403),
        ("https://elsewhere.example", (), 403),
        ("null", (), 403),
        ("https://elsewhere.example", ("https://elsewhere.example",), 200),
        ("https://elsewhere.example", ("*",), 200),
    ],
)
def test_pages_from_elsewhere(origin: str | None, allowed: tuple[str, ...], status: int) -> None:
    """A page in the visitor's browser reaches loopback: neither requests nor sockets are taken."""
    here = client(origins=allowed)
    headers = {"host": "127.0.0.1:7860"} | ({"origin": origin} if origin else {})
    assert here.get("/health", headers=headers).status_code == status
    if status == 200:
        with here.websocket_connect("/v1/socket", headers=headers) as socket:
            assert socket.receive_text() == "in"
    else:
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            here.websocket_connect("/v1/socket", headers=headers),
        ):
            pass
        assert refused.value.status_code == 403


@pytest.mark.parametrize("told", [True, False])
def test_a_large_body_is_refused_whether_its_size_is_told_or_not(told: bool) -> None:
    here = client(most_bytes=1000)

    def body(length: int) -> bytes | Iterator[bytes]:
        return b"x" * length if told else iter([b"x" * 100] * (length // 100))

    assert here.post("/v1/size", content=body(1000)).json() == 1000
    answer = here.post("/v1/size", content=body(1100))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_bodies_that_are_held_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes when others fill the memory is sent away; what was answered counts no more."""
    monkeypatch.setattr("apps.gate.MOST_HELD", 1000)
    here = client()
    for _ in range(3):
        assert here.post("/v1/size", content=b"x" * 900).json() == 900
    answer = here.post("/v1/size", content=b"x" * 1100)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert here.post("/v1/size", content=b"x" * 900).json() == 900


def test_only_allowed_origins_get_cors_headers() -> None:
    page = "https://elsewhere.example"
    asked = {"origin": page, "access-control-request-method": "POST"}
    allowed = client(origins=(page,), key="K").options("/v1/size", headers=asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
    refused = client().options("/v1/size", headers=asked)
    assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("127.9.9.9", 200),
        ("evil.example:7860", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_point_here_is_not_ours(host: str, status: int) -> None:
    headers = {"host": host, "origin": f"http://{host}"}
    assert client(loopback=True).get("/health", headers=headers).status_code == status
    assert client().get("/health", headers=headers).status_code == 200


def test_the_manual_names_every_operation_and_loads_nothing() -> None:
    here = client()
    page = here.get("/docs").text
    for path, methods in here.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    assert "src=" not in page and "https:" not in page and "repetition_penalty" in page
