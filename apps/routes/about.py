"""What is here, and how it fares: models, health, metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from apps.bodies import Health, Model, Models, Refusal
from apps.service import Served, Service
from apps.watch import Metrics
from lfm2_mm import registry, wire
from lfm2_mm.types import Sampling


def router(service: Service, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["about"])

    @routes.get("/health")
    def health() -> Health:
        """Whether the server answers; needs no key."""
        return Health(status="stopping" if service.stopping else "ok")

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {TEXT: {}}}})
    def prometheus() -> Response:
        """Counters and times for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/v1/models")
    def models() -> Models:
        """The models that are served."""
        return Models(data=[told(model) for model in service.models.values()])

    @routes.get("/v1/models/{name:path}", responses={404: {"model": Refusal}})
    def model(name: str) -> Model:
        """One of them."""
        return told(service.find(name))

    return routes


TEXT = "text/plain"


def advice_of(model: Served) -> Sampling | None:
    """Of models that chat by an Engine; speech has advice for each task."""
    return model.engine.advice if model.kind in ("chat", "vision") else None


def told(model: Served) -> Model:
    """A model as OpenAI's list tells it, with what it is for."""
    known = registry.find(model.name) if registry.knows(model.name) else None
    owner = "LiquidAI" if known is not None and known.repo else "lfm2-mm"
    return Model(
        id=model.name,
        created=model.created,
        owned_by=owner,
        kind=model.kind,
        context=getattr(model.engine, "context", None),
        sampling=wire.write_sampling(advice) if (advice := advice_of(model)) else None,
    )
