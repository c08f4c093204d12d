"""Request bodies for text generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from edgecompress.endpoints.bodies import Body, only
from edgecompress.runtime.prompts import Options

_COMPLETION_TOKENS = 16  # default of /v1/completions, as OpenAI's
_SYSTEM_ROLES = ("developer", "system")


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only(False)] = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    # as clients send an answer back
    refusal: Annotated[str | None, only()] = None
    audio: Annotated[Any, only()] = None
    function_call: Annotated[Any, only()] = None
    tool_calls: Annotated[list[Any] | None, only([])] = None
    annotations: Annotated[list[Any] | None, only([])] = None

    def plain(self) -> dict[str, Any]:
        """Convert to a chat template's message. ``developer`` is newer clients' name of the system role."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        made = {"role": "system" if self.role in _SYSTEM_ROLES else self.role, "content": text}
        extra = {"name": self.name, "reasoning_content": self.reasoning_content}
        return made | {key: value for key, value in extra.items() if value is not None}


class Sampled(Body):
    """Fields shared by chat and completions; ``top_k``, ``min_p`` and ``repetition_penalty`` have vLLM's names."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int | None, only(1)] = None
    user: str | None = None  # accepted and ignored
    frequency_penalty: Annotated[float | None, only(0)] = None
    presence_penalty: Annotated[float | None, only(0)] = None
    logit_bias: Annotated[Mapping[str, float] | None, only({})] = None

    def most_tokens(self) -> int | None:
        return self.max_tokens

    def options(self) -> Options:
        options: Options = {"max_new_tokens": self.most_tokens(), "stop": self.stop or ()}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.top_p is not None:
            options["top_p"] = self.top_p
        if self.top_k is not None:
            options["top_k"] = self.top_k
        if self.min_p is not None:
            options["min_p"] = self.min_p
        if self.repetition_penalty is not None:
            options["repetition_penalty"] = self.repetition_penalty
        if self.seed is not None:
            options["seed"] = self.seed
        return options


class Chat(Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    chat_template_kwargs: Mapping[str, Any] | None = None  # from vLLM: variables for the chat template
    logprobs: Annotated[bool | None, only(False)] = None
    top_logprobs: Annotated[int | None, only(0)] = None
    tools: Annotated[list[Any] | None, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    parallel_tool_calls: bool | None = None  # accepted and ignored: tools are not supported
    functions: Annotated[list[Any] | None, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    modalities: Annotated[list[str] | None, only(["text"])] = None
    service_tier: Annotated[str | None, only("auto", "default")] = None
    store: Annotated[bool | None, only(False)] = None
    metadata: Annotated[Mapping[str, str] | None, only({})] = None

    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def options(self) -> Options:
        options = super().options()
        if self.chat_template_kwargs is not None:
            options["template_variables"] = self.chat_template_kwargs
        return options


class Completion(Sampled):
    prompt: str | list[str] | list[int]
    logprobs: Annotated[int | None, only()] = None
    echo: Annotated[bool | None, only(False)] = None
    best_of: Annotated[int | None, only(1)] = None
    suffix: Annotated[str | None, only("")] = None

    def most_tokens(self) -> int | None:
        return _COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
