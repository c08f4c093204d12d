"""The bodies of requests. What is not named here is refused.

Some of it may be named only with the value that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from edgecompress.runtime.prompts import Options

_COMPLETION_TOKENS = 16  # of /v1/completions where nothing is said, as OpenAI has it
_SYSTEM_ROLES = ("developer", "system")


def _only(*neutral: Any) -> AfterValidator:
    """Absent, null or one of these."""

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            known = " or ".join(map(repr, neutral)) or "null"
            raise PydanticCustomError("not_supported", "only {known} is supported", {"known": known})
        return value

    return AfterValidator(check)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, _only(False)] = None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    # as clients send an answer back
    refusal: Annotated[str | None, _only()] = None
    audio: Annotated[Any, _only()] = None
    function_call: Annotated[Any, _only()] = None
    tool_calls: Annotated[list[Any] | None, _only([])] = None
    annotations: Annotated[list[Any] | None, _only([])] = None

    def plain(self) -> dict[str, Any]:
        """For a chat template. ``developer`` is what newer clients call the system's role."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        made = {"role": "system" if self.role in _SYSTEM_ROLES else self.role, "content": text}
        extra = {"name": self.name, "reasoning_content": self.reasoning_content}
        return made | {key: value for key, value in extra.items() if value is not None}


class Sampled(_Strict):
    """What chat and completions have in common; ``top_k``, ``min_p`` and ``repetition_penalty`` as vLLM names them."""

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
    n: Annotated[int | None, _only(1)] = None
    user: str | None = None  # says who asks; nothing depends on it
    frequency_penalty: Annotated[float | None, _only(0)] = None
    presence_penalty: Annotated[float | None, _only(0)] = None
    logit_bias: Annotated[Mapping[str, float] | None, _only({})] = None

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
    chat_template_kwargs: Mapping[str, Any] | None = None  # vLLM's: variables for the chat template
    logprobs: Annotated[bool | None, _only(False)] = None
    top_logprobs: Annotated[int | None, _only(0)] = None
    tools: Annotated[list[Any] | None, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: bool | None = None  # there are no tools
    functions: Annotated[list[Any] | None, _only([])] = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    modalities: Annotated[list[str] | None, _only(["text"])] = None
    service_tier: Annotated[str | None, _only("auto", "default")] = None
    store: Annotated[bool | None, _only(False)] = None
    metadata: Annotated[Mapping[str, str] | None, _only({})] = None

    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def options(self) -> Options:
        options = super().options()
        if self.chat_template_kwargs is not None:
            options["template_variables"] = self.chat_template_kwargs
        return options


class Completion(Sampled):
    prompt: str | list[str] | list[int]
    logprobs: Annotated[int | None, _only()] = None
    echo: Annotated[bool | None, _only(False)] = None
    best_of: Annotated[int | None, _only(1)] = None
    suffix: Annotated[str | None, _only("")] = None

    def most_tokens(self) -> int | None:
        return _COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class Embedding(_Strict):
    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
