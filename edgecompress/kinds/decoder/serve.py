"""POST /v1/chat/completions and /v1/completions: texts of a decoder, whole or as server-sent events.

Reasoning is returned as ``reasoning_content`` beside ``content``, as in DeepSeek's API, without the tags.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgecompress.endpoints.clients import CLIENT_GONE, ClientGoneError, unless_gone
from edgecompress.endpoints.lane import Lane
from edgecompress.endpoints.refusals import Refusal, closing, refusal_of, unknown_model
from edgecompress.endpoints.routes import Route
from edgecompress.kinds.decoder.requests import Chat, Completion, Sampled
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.decoder.text_stream import Ended, Text, write
from edgecompress.runtime.prompts import Options, Single
from edgecompress.runtime.results import Kind, Statistics

PURPOSE = "text generation"
MODEL = "a decoder"
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = (_CHAT, _COMPLETIONS)

_DONE = b"data: [DONE]\n\n"
_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


def endpoints(generator: Generator, name: str, lane: Lane) -> Texts:
    return Texts(generator, name, lane)


class Texts:
    """The endpoints of a decoder bundle. The prefix that a prompt shares with the previous call is not run again."""

    def __init__(self, generator: Generator, name: str, lane: Lane) -> None:
        self._generator, self._name, self._lane = generator, name, lane
        self._session = generator.session()

    @property
    def routes(self) -> tuple[Route, ...]:
        return Route(path=_CHAT, answer=self.chat), Route(path=_COMPLETIONS, answer=self.complete)

    async def chat(self, request: Request, body: Chat) -> Response:
        if not self._generator.has_chat_template:
            raise Refusal(
                400, f"the model '{self._name}' has no chat template; use /v1/completions", code="no_chat_template"
            )
        messages = [message.plain() for message in body.messages]
        return await self._answer(request, body, messages, Form(self._name, "chat"))

    async def complete(self, request: Request, body: Completion) -> Response:
        prompt: Single
        if isinstance(body.prompt, str) or (body.prompt and isinstance(body.prompt[0], int)):
            prompt = cast("Single", body.prompt)
        elif len(body.prompt) == 1:
            prompt = cast("Single", body.prompt[0])
        else:
            raise Refusal(400, "only one prompt per request is supported", code="unsupported_value", param="prompt")
        return await self._answer(request, body, prompt, Form(self._name, "text"))

    def cancel(self) -> None:
        self._generator.cancel()

    def close(self) -> None:
        self._session.close()

    async def _answer(self, request: Request, body: Sampled, prompt: Single, form: Form) -> Response:
        if body.model != self._name:
            raise unknown_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise Refusal(400, "'stream_options' needs 'stream'", code="invalid_value", param="stream_options")
        options = body.options()
        await asyncio.to_thread(self._check_length, prompt, options)
        try:
            text = await unless_gone(request, write(self._lane, self._session, prompt, options))
            if body.stream:
                usage = bool(body.stream_options is not None and body.stream_options.include_usage)
                return Events(text, form.events(text, usage=usage))
            try:
                return await unless_gone(request, form.whole(text))
            finally:
                text.cancel()  # the client is gone
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)

    def _check_length(self, prompt: Single, options: Options) -> None:
        """Reject a prompt that can never fit before it queues. Raises Refusal and UsageError."""
        settings = self._generator.settings
        count = len(self._generator.token_ids(prompt, template_variables=options.get("template_variables")))
        wanted, most = options.get("max_new_tokens") or 1, settings.context_length_tokens
        if count + wanted > most:
            message = (
                f"the model's context is {most} tokens; the prompt has {count}, and the request wants {wanted} new ones"
            )
            raise Refusal(400, message, code="context_length_exceeded")


@dataclass(frozen=True)
class Form:
    """The response format of one endpoint."""

    model: str
    kind: Literal["chat", "text"]

    async def whole(self, text: Text) -> Response:
        async for parts in text.parts():
            if isinstance(parts[-1], Ended):
                return JSONResponse(self._whole(parts[-1]))
        raise AssertionError

    def _whole(self, ended: Ended) -> dict[str, Any]:
        thoughts = {"reasoning_content": ended.text.reasoning} if ended.text.reasoning else {}
        if self.kind == "chat":
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": ended.text.answer, **thoughts}}
        else:
            choice = {"text": ended.text.answer, **thoughts}
        return self._head() | {"choices": [self._choice(choice, _finish(ended))], "usage": usage_of(ended.statistics)}

    async def events(self, text: Text, *, usage: bool) -> AsyncIterator[bytes]:
        """Yield events as text arrives. A text that fails or is cut short ends with an error and without [DONE]."""
        head = self._head(".chunk" if self.kind == "chat" else "") | ({"usage": None} if usage else {})
        try:
            if self.kind == "chat":
                yield _event(head | {"choices": [self._choice({"delta": {"role": "assistant", "content": ""}}, None)]})
            async for parts in text.parts():
                pieces = [part for part in parts if not isinstance(part, Ended) and part.text]
                if pieces:
                    yield b"".join(
                        _event(head | {"choices": [self._choice(self._delta(piece.text, piece.kind), None)]})
                        for piece in pieces
                    )
                if isinstance(last := parts[-1], Ended):
                    end: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
                    yield _event(head | {"choices": [self._choice(end, _finish(last))]})
                    if usage:
                        yield _event(head | {"choices": [], "usage": usage_of(last.statistics)})
        except Exception as error:
            yield _event(refusal_of(error).body)
        else:
            yield _DONE

    def _delta(self, text: str, kind: Kind) -> dict[str, Any]:
        if self.kind == "chat":
            return {"delta": {"reasoning_content" if kind == "reasoning" else "content": text}}
        return {"text": text} if kind == "answer" else {"text": "", "reasoning_content": text}

    def _head(self, ending: str = "") -> dict[str, Any]:
        name, prefix = ("chat.completion", "chatcmpl") if self.kind == "chat" else ("text_completion", "cmpl")
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": name + ending,
            "created": int(time.time()),
            "model": self.model,
        }

    @staticmethod
    def _choice(content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


class Events(StreamingResponse):
    """Server-sent events of a text. The text is cancelled when the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, text: Text, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._text.cancel()


def usage_of(statistics: Statistics) -> dict[str, Any]:
    prompt, new = statistics.prompt_tokens, statistics.new_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": statistics.reused_tokens},
    }


def _finish(ended: Ended) -> str:
    """Raises Refusal for a text that the server cut short, so that no client takes it for a complete one."""
    if ended.text.finish not in _FINISH:
        raise closing()
    return _FINISH[ended.text.finish]


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
