"""The HTTP server: one FastAPI app over a Service. What each file beside this one is for:

- `service.py`: `Service` holds the models (`Served`: name, kind, engine, lane), opened once.
- `lanes.py`: `Lane` is the one thread that may step an engine. From the event loop
  `await lane.do(f)` and `async for x in lane.stream(begin)` (queued, refused with 429 when too many
  wait); from other threads `lane.steps(iterator)` and `lane.call(f)` (not queued, one step each).
- `gate.py`: key, origin and size, in front of every route, WebSockets too.
- `replies.py`: which error is which status. `bodies.py`: what is sent and told, as pydantic models.
- `routes/`: one file a subject. `streams.py`: pieces sent as they come, work that stops when the
  client leaves. `watch.py`: metrics and log lines; `note` says of a request what it used.

Routers of their own, such as that of `/v1/realtime`, are given to `build`; they find the Service at
`app.state.service`. They are put in before the pages, since gradio takes what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.middleware.cors import CORSMiddleware

from apps import manual, replies
from apps.gate import MOST_BYTES, Gate
from apps.routes import about, chat, search, speech
from apps.service import Service
from apps.watch import Metrics, Watch

ABOUT = "OpenAI-compatible: chat, speech, embeddings, reranking, search in indexes."


def build(
    service: Service,
    routers: Sequence[APIRouter] = (),
    *,
    key: str | None = None,
    origins: Sequence[str] = (),
    loopback: bool = False,
    most_bytes: int = MOST_BYTES,
) -> FastAPI:
    """The app, without pages: `demos.site.Site` mounts those and serves it.

    key: who asks must know it; None: no key. origins: whose pages may ask beside our own.
    """
    # FastAPI's own page of the interface is loaded from elsewhere; ours is made here.
    app = FastAPI(title="lfm2-mm", description=ABOUT, docs_url=None, redoc_url=None)
    app.get("/docs", response_class=HTMLResponse, include_in_schema=False)(
        lambda: manual.page(app.openapi())
    )
    app.state.service = service
    replies.install(app)
    metrics = Metrics(service)
    ours = (
        about.router(service, metrics),
        chat.router(service),
        speech.router(service),
        search.router(service),
    )
    for router in (*ours, *routers):
        app.include_router(router)
    app.add_middleware(Gate, key=key, origins=origins, loopback=loopback, most_bytes=most_bytes)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Watch, metrics=metrics)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI page, without the status that FastAPI believes wrong bodies to have."""
    if app.openapi_schema is None:
        page = get_openapi(
            title=app.title, version="1", description=ABOUT, routes=app.routes, tags=None
        )
        for path in page["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            page.get("components", {}).get("schemas", {}).pop(name, None)
        app.openapi_schema = page
    return app.openapi_schema
