"""POST /v1/embeddings: the vectors of the runtime's ``encode()``."""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from edgecompress.endpoints.bodies import Body
from edgecompress.endpoints.clients import CLIENT_GONE, ClientGoneError, unless_gone
from edgecompress.endpoints.lane import Lane
from edgecompress.endpoints.refusals import Refusal, unknown_model
from edgecompress.endpoints.routes import Route
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.types.arrays import FloatArray

PURPOSE = "embeddings of texts"
MODEL = "an encoder"
_EMBEDDINGS = "/v1/embeddings"
PATHS = (_EMBEDDINGS,)

_MOST_TEXTS = 2048  # per request, as OpenAI's limit


def endpoints(encoder: Encoder, name: str, lane: Lane) -> Vectors | None:
    """Return the endpoint, or None if the bundle's task is not embedding."""
    embeds = encoder.manifest.task in ("sentence-similarity", "feature-extraction")
    return Vectors(encoder, name, lane) if embeds else None


class Embedding(Body):
    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class Vectors:
    """The endpoint of an encoder bundle."""

    def __init__(self, encoder: Encoder, name: str, lane: Lane) -> None:
        self._encoder, self._name, self._lane = encoder, name, lane

    @property
    def routes(self) -> tuple[Route, ...]:
        return (Route(path=_EMBEDDINGS, answer=self.embed),)

    def cancel(self) -> None:
        """Does nothing: a batch always runs to its end."""

    def close(self) -> None:
        """Does nothing: no state is kept between requests."""

    async def embed(self, request: Request, body: Embedding) -> Response:
        if body.model != self._name:
            raise unknown_model(body.model)
        texts = _texts(body)
        try:
            vectors, tokens = await unless_gone(request, self._lane.run(lambda: self._encode(texts, body.dimensions)))
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
        as_text = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self._name, "usage": usage})

    def _encode(self, texts: list[str], dimensions: int | None) -> tuple[FloatArray, int]:
        vectors = self._encoder.encode(texts)
        if dimensions not in (None, vectors.shape[1]):
            raise Refusal(
                400,
                f"the model '{self._name}' has vectors of {vectors.shape[1]} dimensions only",
                code="unsupported_value",
                param="dimensions",
            )
        tokenizer = self._encoder.tokenizer
        prompt = tokenizer.settings.prompts.get(tokenizer.settings.default_prompt or "", "")
        tokens = tokenizer.encode(texts, prompt=prompt, truncate=False)
        return vectors, sum(len(each.ids) for each in tokens)


def _texts(body: Embedding) -> list[str]:
    """Raises Refusal for token ids, which could be another tokenizer's and give meaningless vectors."""
    given: list[Any] = [body.input] if isinstance(body.input, str) else list(body.input)
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) < len(given):
        raise Refusal(400, "texts are supported, token ids are not", code="unsupported_value", param="input")
    if not texts or len(texts) > _MOST_TEXTS:
        message = f"a request must have 1 to {_MOST_TEXTS} texts, not {len(texts)}"
        raise Refusal(400, message, code="invalid_value", param="input")
    return texts


def _base64(vector: FloatArray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
