"""The HTTP server: one FastAPI app over a Service. What each file beside this one is for:

- `service.py`: `Service` holds the models (`Served`: name, kind, engine, lane), opened once.
- `lanes.py`: `Lane` is the one thread that may step an engine. From the event loop
  `await lane.do(f)` and `async for x in lane.stream(begin)` (queued, refused with 429 when too many
  wait); from other threads `lane.steps(iterator)` and `lane.call(f)` (not queued, one step each).
- `gate.py`: key, origin and size, in front of every route, WebSockets too.
- `replies.py`: which error is which status.

Routers of their own, such as that of `/v1/realtime`, are given to `build`; they find the Service at
`app.state.service`. They are put in before the pages, since gradio takes what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from apps import replies
from apps.gate import MOST_BYTES, Gate
from apps.service import Service

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
    app = FastAPI(title="lfm2-mm", description=ABOUT, docs_url="/docs", redoc_url=None)
    app.state.service = service
    replies.install(app)
    app.include_router(_about())
    for router in routers:
        app.include_router(router)
    app.add_middleware(Gate, key=key, origins=origins, loopback=loopback, most_bytes=most_bytes)
    return app


def _about() -> APIRouter:
    router = APIRouter(tags=["about"])

    @router.get("/health")
    def health() -> dict[str, str]:
        """Whether the server answers; needs no key."""
        return {"status": "ok"}

    return router
