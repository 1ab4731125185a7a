"""What the server tells of itself: metrics for Prometheus, a line of JSON for each request."""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.service import Service
from lfm2_mm.types import Done

logger = logging.getLogger("lfm2_mm.server")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
QUIET = ("/health", "/metrics")  # asked by machines all the time: counted, but not logged


def note(request: HTTPConnection, *, model: str | None = None, done: Done | None = None) -> None:
    """Say of a request which model worked for it and what that did."""
    told = request.scope.setdefault("lfm2_mm", {})
    if model is not None:
        told["model"] = model
    if done is not None:
        told |= {
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
            "first_token_s": round(done.timings.first_token_s, 4),
        }


class Metrics:
    """The counters of one app."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(Lanes(service))
        self.requests = Counter(
            "lfm2_mm_requests", "Requests answered", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "lfm2_mm_request_seconds", "Seconds from request to the last byte", ("route",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "lfm2_mm_first_token_seconds", "Seconds of work before the first token", ("model",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter(
            "lfm2_mm_tokens", "Tokens read and made", ("model", "kind"), registry=self.registry
        )

    def count(self, route: str, status: int, seconds: float, told: dict[str, Any]) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if "completion_tokens" in told and "model" in told:
            self.tokens.labels(told["model"], "prompt").inc(told["prompt_tokens"])
            self.tokens.labels(told["model"], "completion").inc(told["completion_tokens"])
            self.first.labels(told["model"]).observe(told["first_token_s"])


class Lanes(Collector):
    """How many requests are at or before each lane, read when asked."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("lfm2_mm_lane_jobs", "Requests at or before it", labels=["lane"])
        refused = CounterMetricFamily("lfm2_mm_lane_refused", "Sent away, 429", labels=["lane"])
        for lane in self.service.lanes:
            jobs.add_metric([lane.name], lane.jobs)
            refused.add_metric([lane.name], lane.refused)
        yield jobs
        yield refused


class Watch:
    """Counts and logs every request; pure ASGI, outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        start, status, named = time.perf_counter(), 0, uuid.uuid4().hex
        told: dict[str, Any] = {}  # filled by `note`
        scope["lfm2_mm"] = told

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", named.encode()))
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.count(_route(scope), status, seconds, told)
            if scope["path"].startswith("/v1/"):
                logger.info(
                    "request",
                    extra={
                        "told": {
                            "id": named,
                            "method": scope.get("method", "WEBSOCKET"),
                            "path": scope["path"],
                            "status": status,  # 0: the client left before there was one
                            "seconds": round(seconds, 4),
                            **told,
                        }
                    },
                )


def _route(scope: Scope) -> str:
    """The template of the path, so that there are few of them."""
    path = getattr(scope.get("route"), "path", None)
    if (path and path.startswith("/v1")) or scope["path"] in QUIET:
        return str(path or scope["path"])
    return "other"


class Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Requests and mistakes as lines of JSON, while it lasts."""
    level, propagate = logger.level, logger.propagate
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
