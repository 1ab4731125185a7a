"""Errors as OpenAI's clients know them: which status, and the JSON that tells them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from apps.lanes import Busy, Stopping
from apps.service import Conflict, UnknownModel
from apps.streams import ClientGone
from apps.watch import logger
from lfm2_mm.errors import (
    BadInput,
    BeyondLimit,
    ContextExceeded,
    IndexBusy,
    IndexMissing,
    LfmError,
    UnknownCheckpoint,
)

# The first that fits: (error, status, code)
STATUS: tuple[tuple[type[LfmError], int, str | None], ...] = (
    (Busy, 429, "rate_limit_exceeded"),
    (Stopping, 503, "stopping"),
    (ClientGone, 499, "client_gone"),  # nobody reads it; for the log
    (UnknownModel, 404, "model_not_found"),
    (UnknownCheckpoint, 404, "model_not_found"),
    (IndexMissing, 404, "index_not_found"),
    (IndexBusy, 409, "index_busy"),
    (Conflict, 409, "already_there"),
    (ContextExceeded, 413, "context_length_exceeded"),
    (BeyondLimit, 413, "too_large"),
    (BadInput, 400, None),
)
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


# Known fields that are only taken with a value that changes nothing
NEUTRAL = (
    "chunking_strategy", "frequency_penalty", "function_call", "functions", "include", "language",
    "logit_bias", "logprobs", "n", "prediction", "presence_penalty", "priority", "prompt",
    "reasoning_effort", "response_format", "service_tier", "speed", "store", "stream_options",
    "tool_choice", "tools", "top_logprobs", "truncation", "web_search_options",
)  # fmt: skip
PLACE = re.compile(r"(?!body$)\w+")  # other words in a place are names of pydantic's own
TOO_MANY = ("too_long", "string_too_long")  # pydantic's, of a list and of a text


def refusal(
    status: int,
    message: str,
    code: str | None = None,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """`{"error": {"message", "type", "code", "param"}}` with its status."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "code": code, "param": param}
    return JSONResponse({"error": error}, status, headers=dict(headers or {}))


def told(error: LfmError) -> JSONResponse:
    """One of our errors, as a reply."""
    wait = {Busy: getattr(error, "retry_after", 1), Stopping: 5}.get(type(error))
    headers = {"retry-after": str(wait)} if wait else None
    status, code = next((s[1:] for s in STATUS if isinstance(error, s[0])), (500, None))
    return refusal(status, str(error), code, headers=headers)


def _specific(error: Mapping[str, Any]) -> tuple[int, bool]:
    """Where several kinds of value would do, what is wrong deepest within one is meant."""
    return len(error["loc"]), error["type"] != "string_type"


def invalid(first: Mapping[str, Any]) -> JSONResponse:
    """What pydantic found first, said so that one can act on it."""
    where = ".".join(p for p in map(str, first["loc"]) if PLACE.fullmatch(p)) or "the body"
    kind, message = first["type"], first["msg"]
    if kind == "extra_forbidden":
        return refusal(400, f"{where} is not supported; leave it out", "unsupported", param=where)
    if where.partition(".")[0] in NEUTRAL:
        told = f"{where} is not supported with this value ({message}); leave it out"
        return refusal(400, told, "unsupported", param=where)
    if kind in TOO_MANY:
        return refusal(413, f"{where}: {message}", "too_large", param=where)
    if kind in ("json_invalid", "model_attributes_type"):
        return refusal(400, f"the body is no JSON object: {message}", "invalid_json")
    return refusal(400, f"{where}: {message}", kind, param=where)


def install(app: FastAPI) -> None:
    """Every error of this app is told in this form."""

    @app.exception_handler(LfmError)
    async def _ours(request: Request, error: LfmError) -> JSONResponse:
        return told(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(max(error.errors(), key=_specific))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("mistake", exc_info=error, extra={"told": {"path": request.url.path}})
        return refusal(500, f"unexpected {type(error).__name__}; the server's log tells more")
