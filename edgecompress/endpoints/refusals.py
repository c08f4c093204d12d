"""Error responses in the format of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from edgecompress.errors import EdgeCompressError, HostError, UsageError


class Refusal(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def busy(waiting: int, wait_s: float) -> Refusal:
    message = f"the queue is full: {waiting} requests are waiting"
    return Refusal(429, message, code="queue_full", headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def closing() -> Refusal:
    return Refusal(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})


def unknown_model(name: str) -> Refusal:
    return Refusal(404, f"the model '{name[:200]}' does not exist here", code="model_not_found", param="model")


def unsupported_task(name: str, hint: str) -> Refusal:
    """``hint``: what the model is, and which paths it supports."""
    return Refusal(400, f"the model '{name}' is {hint}", code="unsupported_task", param="model")


def refusal_of(error: BaseException) -> Refusal:
    """The response to an exception. An internal error reveals no details."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, EdgeCompressError):
        status = 400 if isinstance(error, UsageError) else 503 if isinstance(error, HostError) else 500
        message = f"{error.message}. {error.hint}" if error.hint else error.message
        return Refusal(status, message)
    return Refusal(500, "internal error", code="internal_error")


def add_handlers(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).response

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _of_body(error).response

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        nothing = error.status_code in (404, 405)
        message = f"unknown URL: {request.method} {request.url.path}" if nothing else str(error.detail)
        code = "unknown_url" if nothing else None
        return Refusal(error.status_code, message, code=code, headers=error.headers).response

    for kind in (Refusal, EdgeCompressError):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(Exception, refused)


def _of_body(error: RequestValidationError) -> Refusal:
    """The first problem of the body, without repeating its content."""
    first = error.errors()[0]
    kind, places = str(first["type"]), [str(part) for part in first["loc"][1:]]
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", code="invalid_json")
    param = ".".join(places) or None
    if kind == "extra_forbidden":
        return Refusal(400, f"'{param}' is not supported", code="unsupported_parameter", param=param)
    if kind == "missing":
        what = f"'{param}' is missing" if param else "the body is missing"
        return Refusal(400, what, code="missing_required_parameter", param=param)
    code = "unsupported_value" if kind == "not_supported" else "invalid_value"
    return Refusal(400, f"'{param}': {first['msg']}" if param else str(first["msg"]), code=code, param=param)
