"""One request to the endpoint. A failure ends the run, fails the prompt, or is retried."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from edgecompress.distill.budget import Tokens
from edgecompress.distill.endpoint import Endpoint, KeySource, Secret
from edgecompress.distill.prompts import Prompt, Sampling
from edgecompress.distill.responses import Answer
from edgecompress.errors import EndpointError, HostError

_CONNECT_S = 15.0
_LONGEST_WAIT_S = 300.0  # accepted from Retry-After
_LONGEST_REASON = 300
_TRY_AGAIN = (408, 409, 425, 429)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")


class TryAgainError(Exception):
    """``after_s``: delay for every request. ``paid``: the endpoint may have billed a response."""

    def __init__(self, reason: str, *, after_s: float = 0.0, paid: bool) -> None:
        super().__init__(reason)
        self.reason, self.after_s, self.paid = reason, after_s, paid


class RefusedError(Exception):
    """The endpoint rejects this prompt permanently. ``paid``: after it generated a response."""

    def __init__(self, reason: str, *, paid: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.paid = reason, paid


@dataclass(kw_only=True)
class _StreamedResponse:
    """What a stream has delivered so far."""

    text: list[str]
    reasoning: list[str]
    finish: str | None = None
    tokens: Tokens | None = None


class TeacherClient:
    """A context manager that closes the client's connections. The client library's own retries are off."""

    def __init__(
        self, endpoint: Endpoint, secret: Secret, sampling: Sampling, *, timeout_s: float, key: KeySource
    ) -> None:
        """``timeout_s``: between two chunks of a response. Raises HostError if `openai` is not installed."""
        try:
            import openai
        except ModuleNotFoundError:
            raise HostError(
                "a teacher behind an endpoint needs the package 'openai'", hint="pip install 'edgecompress[distill]'"
            ) from None
        self._openai, self._endpoint, self._secret, self._key = openai, endpoint, secret, key
        self._options = {
            endpoint.limit_name: sampling.max_tokens,
            **{
                name: value
                for name in ("temperature", "top_p", "seed")
                if (value := getattr(sampling, name)) is not None
            },
        }
        self._client = openai.AsyncOpenAI(
            api_key=secret.reveal(),
            base_url=endpoint.url,
            max_retries=0,
            timeout=openai.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
        )

    async def __aenter__(self) -> TeacherClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, prompt: Prompt) -> Answer:
        """Raises TryAgainError, RefusedError, and EndpointError for failures that a retry cannot fix."""
        read = _StreamedResponse(text=[], reasoning=[])
        try:
            await self._read(prompt, read)
        except self._openai.APIStatusError as error:
            raise self._of_status(error) from None
        except self._openai.APITimeoutError as error:
            raise TryAgainError("the endpoint did not answer in time", paid=not _unsent(error)) from None
        except self._openai.APIConnectionError as error:
            raise self._of_connection(error) from None
        except self._openai.APIError as error:  # in the middle of a stream
            raise TryAgainError(f"the response ended with an error: {self._words(error.message)}", paid=True) from None
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            what = "is not JSON" if isinstance(error, json.JSONDecodeError) else "does not follow the protocol"
            raise TryAgainError(f"the response {what}", paid=True) from None
        if read.finish is None:
            raise TryAgainError("the response is incomplete", paid=True)
        if read.finish == "content_filter":
            raise RefusedError("the endpoint's content filter blocked the response", paid=True)
        return Answer(
            text=self._secret.scrub_whole("".join(read.text)),
            reasoning=self._secret.scrub_whole("".join(read.reasoning)),
            finish=read.finish,
            tokens=read.tokens,
        )

    async def _read(self, prompt: Prompt, read: _StreamedResponse) -> None:
        messages: Any = list(prompt.messages)
        stream = await self._client.chat.completions.create(
            model=self._endpoint.model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **self._options,
        )
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    read.tokens = Tokens(int(chunk.usage.prompt_tokens), int(chunk.usage.completion_tokens))
                for choice in chunk.choices[:1]:
                    delta: Any = choice.delta
                    read.text.append(delta.content or "")
                    reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
                    read.reasoning.append(reasoning or "")
                    read.finish = choice.finish_reason or read.finish

    def _of_status(self, error: Any) -> Exception:
        status, where = error.status_code, self._endpoint.url
        after_s = _retry_after(error.response.headers)
        said = self._words(error.message)
        if status in (401, 403):  # its message may contain part of the key
            what = "the API key" if self._secret else "requests without an API key"
            return EndpointError(f"{where} rejects {what} ({status})", hint=f"Put a valid key in {self._key}.")
        if status == 404:
            return EndpointError(
                f"{where} has no model '{self._endpoint.model}' (404): {said}",
                hint="Check the list of models at /v1/models, and that the address ends in /v1.",
            )
        if status == 402 or (status == 429 and error.code in _NO_MONEY):
            return EndpointError(
                f"{where} requires payment ({status}): {said}", hint="Run the same command after payment: it resumes."
            )
        if status >= 500 or status in _TRY_AGAIN:
            return TryAgainError(f"{status}: {said}", after_s=after_s, paid=status == 504)
        return RefusedError(f"{status}: {said}")

    def _of_connection(self, error: BaseException) -> Exception:
        where = self._endpoint.url
        for cause in _causes(error):
            if isinstance(cause, socket.gaierror):
                return UnknownHostError(
                    f"the host of {where} is unknown: {cause.strerror}",
                    hint="Check the address and the network.",
                )
            if isinstance(cause, ssl.SSLCertVerificationError):
                return EndpointError(
                    f"the certificate of {where} is not trusted: {cause.verify_message}",
                    hint="Check the host. SSL_CERT_FILE can name a file with further trusted certificates.",
                )
        if _unsent(error):
            return TryAgainError("the endpoint cannot be reached", paid=False)
        return TryAgainError("the connection was lost", paid=True)

    def _words(self, text: object) -> str:
        line = " ".join(str(text).split())[: 2 * _LONGEST_REASON]
        return self._secret.scrub(line)[:_LONGEST_REASON]


class UnknownHostError(EndpointError):
    """DNS has no such host: ends a run that has no response yet."""


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _unsent(error: BaseException) -> bool:
    """Whether the request was never sent."""
    return any(type(cause).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout") for cause in _causes(error))


def _retry_after(headers: Any) -> float:
    text = headers.get("retry-after") or ""
    seconds = 0.0
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return min(max(seconds, 0.0), _LONGEST_WAIT_S) if seconds == seconds else 0.0
    with contextlib.suppress(ValueError, TypeError):
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)
