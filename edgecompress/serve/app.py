"""The FastAPI application: routes and the API key check."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from edgecompress.endpoints.lane import Lane
from edgecompress.endpoints.refusals import Refusal, add_handlers, unknown_model, unsupported_task
from edgecompress.endpoints.routes import Route
from edgecompress.endpoints.turns import Turns
from edgecompress.errors import UsageError
from edgecompress.kinds import find_kind, kinds
from edgecompress.kinds.base import Kind
from edgecompress.version import __version__

MAX_QUEUE = 32
_LARGEST_BODY_BYTES = 16 << 20


class Service:
    """One model and its requests."""

    def __init__(self, model: Any, name: str, max_queue: int) -> None:
        """``model``: the result of ``load()``. Raises UsageError if its task has no endpoint."""
        self.model, self.name, self.max_queue = model, name, max_queue
        self.turns = Turns(max_queue)
        self._lane = Lane(self.turns)
        self._since = int(time.time())
        self._kind = find_kind(model.manifest.kind)
        endpoints = self._kind.serve.endpoints(model, name, self._lane) if self._kind.has("serve") else None
        if endpoints is None:
            purposes = " and ".join(kind.serve.PURPOSE for kind in _served_kinds())
            raise UsageError(
                f"this bundle's task is {model.manifest.task}, which has no endpoint in OpenAI's protocol",
                hint=f"serve supports {purposes}; use `edgecompress run` for other tasks.",
            )
        self._endpoints = endpoints

    @property
    def routes(self) -> tuple[Route, ...]:
        """The model's routes, and those of other kinds, which reply with the supported paths."""
        own = self._endpoints.routes
        others = {path for kind in _served_kinds() for path in kind.serve.PATHS} - {route.path for route in own}
        return (*own, *(Route(path=path, answer=self._another_task) for path in sorted(others)))

    async def health(self) -> JSONResponse:
        state = {
            "status": "closing" if self.turns.closed else "ok",
            "model": self.name,
            "task": self.model.manifest.task,
            "running": int(self.turns.running),
            "waiting": self.turns.waiting,
            "max_queue": self.max_queue,
            "version": __version__,
        }
        return JSONResponse(state, 503 if self.turns.closed else 200)

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._card()]}

    async def one_model(self, name: str) -> dict[str, Any]:
        if name != self.name:
            raise unknown_model(name)
        return self._card()

    def begin_closing(self, grace_s: float) -> None:
        """Refuse waiting requests; cancel the running one after ``grace_s``. Call in the event loop."""
        self.turns.close()
        asyncio.get_running_loop().call_later(grace_s, self._endpoints.cancel)

    def close(self) -> None:
        self._endpoints.cancel()
        self._lane.close()
        self._endpoints.close()

    async def _another_task(self) -> None:
        paths = " or ".join(route.path for route in self._endpoints.routes)
        raise unsupported_task(self.name, f"{self._kind.serve.MODEL}; use {paths}")

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "edgecompress"}


def make_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """``api_key``: required of clients; None: open to everyone."""
    app = FastAPI(
        title="edgecompress",
        version=__version__,
        docs_url=None,  # that page loads scripts from other hosts
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        max_body_size=_LARGEST_BODY_BYTES,
    )
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", service.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", service.one_model, methods=["GET"], response_model=None)
    for route in service.routes:
        app.add_api_route(route.path, route.answer, methods=[route.method], response_model=None)
    add_handlers(app)
    if api_key is not None:
        app.add_middleware(_KeyCheck, key=api_key)
    return app


class _KeyCheck:
    """Checks the API key of every request under /v1 before its body is read."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self._expected):
                refusal = Refusal(401, "the API key is missing or wrong", code="invalid_api_key")
                await refusal.response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _served_kinds() -> Sequence[Kind]:
    return [kind for kind in kinds().values() if kind.has("serve")]
