"""The application: which path leads where, and who may come in."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from edgecompress import __version__
from edgecompress.endpoints.lane import Lane
from edgecompress.endpoints.refusals import Refusal, add_handlers
from edgecompress.endpoints.turns import Turns
from edgecompress.errors import UsageError
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.decoder.serve import Texts, unknown_model
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.kinds.encoder.serve import Vectors

MAX_QUEUE = 32
_LARGEST_BODY_BYTES = 16 << 20
_EMBEDDINGS = ("sentence-similarity", "feature-extraction")


class Service:
    """One model and the requests for it."""

    def __init__(self, model: Encoder | Generator, name: str, max_queue: int) -> None:
        """Raises UsageError for a bundle of another task, which OpenAI's protocol has no endpoint for."""
        task = model.manifest.task
        if isinstance(model, Encoder) and (task not in _EMBEDDINGS or model.manifest.image is not None):
            raise UsageError(
                f"this bundle is for {task}, which OpenAI's protocol has no endpoint for",
                hint="Served are text generation and embeddings of texts; `edgecompress run` takes the others.",
            )
        self.model, self.name, self.max_queue = model, name, max_queue
        self.turns = Turns(max_queue)
        self._lane = Lane(self.turns)
        self._since = int(time.time())
        self.texts = Texts(model, name, self._lane) if isinstance(model, Generator) else None
        self.vectors = Vectors(model, name, self._lane) if isinstance(model, Encoder) else None

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

    async def no_texts(self) -> None:
        raise _another_task(self.name, "an encoder; use /v1/embeddings")

    async def no_vectors(self) -> None:
        raise _another_task(self.name, "a decoder; use /v1/chat/completions or /v1/completions")

    def begin_closing(self, grace_s: float) -> None:
        """Refuse what waits; end the text that is being written if it is not done in time. In the event loop."""
        self.turns.close()
        if isinstance(self.model, Generator):
            asyncio.get_running_loop().call_later(grace_s, self.model.cancel)

    def close(self) -> None:
        if isinstance(self.model, Generator):
            self.model.cancel()
        self._lane.close()
        if self.texts is not None:
            self.texts.close()

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "edgecompress"}


def make_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """``api_key``: what clients must give; None lets everybody in."""
    app = FastAPI(
        title="edgecompress",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        max_body_size=_LARGEST_BODY_BYTES,
    )
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", service.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", service.one_model, methods=["GET"], response_model=None)
    chat = service.no_texts if service.texts is None else service.texts.chat
    complete = service.no_texts if service.texts is None else service.texts.complete
    embed = service.no_vectors if service.vectors is None else service.vectors.embed
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/embeddings", embed, methods=["POST"], response_model=None)
    add_handlers(app)
    if api_key is not None:
        app.add_middleware(_Door, key=api_key)
    return app


class _Door:
    """Everything under /v1 takes the key, before its body is read."""

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


def _another_task(name: str, what: str) -> Refusal:
    return Refusal(400, f"the model '{name}' is {what}", code="unsupported_task", param="model")
