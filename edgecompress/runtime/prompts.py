"""What a caller may give as a prompt, and how it becomes tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from edgecompress.errors import UsageError
from edgecompress.runtime.chat import ChatTemplate
from edgecompress.runtime.text import PromptTokenizer
from edgecompress.types.bundle import GenerationSettings

Message = Mapping[str, Any]
Single = str | Sequence[Message] | Sequence[int]
"""A text, encoded as the checkpoint's tokenizer does by default; messages for its chat template; or token ids."""
Batch = list[str] | list[list[Message]] | list[list[dict[str, str]]] | list[list[int]]


class Options(TypedDict, total=False):
    """What every generating call takes. What is left out is as the checkpoint's generation_config.json says."""

    max_new_tokens: int | None  # None: until the model ends the text or the context is full
    temperature: float | None  # 0: the likeliest token every time
    top_k: int | None  # 0: no limit
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str]  # the text ends before the first of them
    seed: int | None  # the same seed and the same prompts give the same texts
    lookup_tokens: int  # draft up to so many tokens from the text itself; greedy decoding of one text only
    template_variables: Mapping[str, Any] | None  # for the chat template, e.g. {"enable_thinking": False}


def split_batch(prompt: Single | Batch) -> tuple[list[Single], bool]:
    """The prompts one by one, and whether there was a list of them. Raises UsageError."""
    if isinstance(prompt, str):
        return [prompt], False
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise UsageError(
            f"a prompt is a text, a list of messages, or a list of those, not a {type(prompt).__name__}",
            hint='Give "a text", or [{"role": "user", "content": "a text"}].',
        )
    if not prompt:
        raise UsageError("there is no prompt: the list is empty", hint="Give at least one prompt.")
    if isinstance(prompt[0], Mapping | int) and not isinstance(prompt[0], bool):
        return [cast("Single", prompt)], False
    return [cast("Single", one) for one in prompt], True


def encode_prompt(
    prompt: Single,
    index: int,
    *,
    tokenizer: PromptTokenizer,
    template: ChatTemplate | None,
    settings: GenerationSettings,
    variables: Mapping[str, Any] | None,
) -> tuple[list[int], bool]:
    """Token ids of one prompt, and whether it leaves the model inside its reasoning. Raises UsageError."""
    if isinstance(prompt, str):
        text, ids = prompt, tokenizer.encode(prompt, special_tokens=True)
    elif isinstance(prompt, Sequence) and prompt and all(isinstance(part, Mapping) for part in prompt):
        if template is None:
            raise UsageError("this bundle has no chat template", hint="Give the prompt as a plain text.")
        text = template.render(cast("Sequence[Message]", prompt), variables)
        ids = tokenizer.encode(text, special_tokens=False)
    elif isinstance(prompt, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        ids = list(cast("Sequence[int]", prompt))
        tokenizer.check(ids)
        text = tokenizer.decode(ids[-8:])
    else:
        raise UsageError(
            f"prompt {index} is a {type(prompt).__name__}, not a text, messages or token ids",
            hint="Give strings, or lists of messages.",
        )
    if not ids and settings.bos_token_id is not None:
        ids = [settings.bos_token_id]
    if not ids:
        raise UsageError(f"prompt {index} is empty", hint="Give at least one character.")
    tag = settings.think_start
    return ids, bool(tag and text.rstrip().endswith(tag))


def new_token_limit(prompt_tokens: int, max_new_tokens: int | None, context_tokens: int, index: int) -> int:
    """How long the text may become, prompt included. Raises UsageError if that does not fit into the context."""
    if prompt_tokens >= context_tokens:
        raise UsageError(
            f"prompt {index} has {prompt_tokens} tokens, and the model's context is {context_tokens} with the answer",
            hint="Shorten the prompt.",
        )
    if max_new_tokens is None:
        return context_tokens
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(
            f"max_new_tokens is a whole number, at least 1, not {max_new_tokens}",
            hint="Leave it out to generate until the model ends the text.",
        )
    if prompt_tokens + max_new_tokens > context_tokens:
        raise UsageError(
            f"{prompt_tokens} tokens of prompt {index} and {max_new_tokens} new ones are more than the model's context "
            f"of {context_tokens}",
            hint=f"Ask for at most {context_tokens - prompt_tokens} new tokens.",
        )
    return prompt_tokens + max_new_tokens


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Raises UsageError for an empty one, or one that is no string."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise UsageError(f"a stop string is a text with at least one character, not {one!r}", hint="Remove it.")
    return stops
