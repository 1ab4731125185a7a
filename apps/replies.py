"""Errors as OpenAI's clients know them: which status, and the JSON that tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from apps.lanes import Busy, Stopping
from apps.service import UnknownModel
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
    (UnknownModel, 404, "model_not_found"),
    (UnknownCheckpoint, 404, "model_not_found"),
    (IndexMissing, 404, "index_not_found"),
    (IndexBusy, 409, "index_busy"),
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
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, Busy) else None
    status, code = next((s[1:] for s in STATUS if isinstance(error, s[0])), (500, None))
    return refusal(status, str(error), code, headers=headers)


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
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(str(place) for place in first["loc"] if place != "body") or "the body"
        return refusal(400, f"{where}: {first['msg']}", first["type"], param=where)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        return refusal(500, f"unexpected {type(error).__name__}; the server's log tells more")
