"""The prompts that a caller can pass, and how they become tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from edgecompress.errors import UsageError
from edgecompress.runtime.chat import ChatTemplate
from edgecompress.runtime.text import PromptTokenizer
from edgecompress.types.bundle import GenerationSettings

Message = Mapping[str, Any]
Single = str | Sequence[Message] | Sequence[int]
"""A text, encoded with the tokenizer's default special tokens; messages for the chat template; or token ids."""
Batch = list[str] | list[list[Message]] | list[list[dict[str, str]]] | list[list[int]]


class Options(TypedDict, total=False):
    """Keyword arguments of every generating call.

    ``temperature``, ``top_k``, ``top_p`` and ``repetition_penalty`` default to the checkpoint's
    ``generation_config.json``.
    """

    max_new_tokens: int | None
    """Maximum number of new tokens. None (default): until the model ends the text or the context is full."""
    temperature: float | None
    """Sampling temperature, 0 or more. 0 is greedy: always the most probable token."""
    top_k: int | None
    """Sample from the ``top_k`` most probable tokens. 0: no limit."""
    top_p: float | None
    """Sample from the smallest set of most probable tokens that reaches this probability, in (0, 1]."""
    min_p: float | None
    """Drop tokens below this share of the most probable token's probability, from 0 (default, off) to 1."""
    repetition_penalty: float | None
    """Above 1: makes tokens that are already in the prompt or the text less probable. 1 disables it."""
    stop: str | Sequence[str]
    """One or more stop strings. The text ends before the first one that occurs."""
    seed: int | None
    """Random seed, 0 or more. The same seed and prompts give the same texts. None (default): a random seed."""
    lookup_tokens: int
    """Draft up to this many tokens from the text itself (prompt lookup). 0 (default): off. Greedy, one prompt only."""
    template_variables: Mapping[str, Any] | None
    """Variables for the chat template, e.g. ``{"enable_thinking": False}``."""


def split_batch(prompt: Single | Batch) -> tuple[list[Single], bool]:
    """Return the prompts as a list, and whether the caller passed a list of prompts. Raises UsageError."""
    if isinstance(prompt, str):
        return [prompt], False
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise UsageError(
            f"a prompt must be a text, a list of messages, or a list of prompts, not {type(prompt).__name__}",
            hint='Pass "a text", or [{"role": "user", "content": "a text"}].',
        )
    if not prompt:
        raise UsageError("the list of prompts is empty", hint="Pass at least one prompt.")
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
    """Return a prompt's token ids, and whether it ends inside the model's reasoning. Raises UsageError."""
    if isinstance(prompt, str):
        text, ids = prompt, tokenizer.encode(prompt, special_tokens=True)
    elif isinstance(prompt, Sequence) and prompt and all(isinstance(part, Mapping) for part in prompt):
        if template is None:
            raise UsageError("this bundle has no chat template", hint="Pass the prompt as plain text.")
        text = template.render(cast("Sequence[Message]", prompt), variables)
        ids = tokenizer.encode(text, special_tokens=False)
    elif isinstance(prompt, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        ids = list(cast("Sequence[int]", prompt))
        tokenizer.check(ids)
        text = tokenizer.decode(ids[-8:])
    else:
        raise UsageError(
            f"prompt {index} is a {type(prompt).__name__}, not a text, messages or token ids",
            hint="Pass strings, or lists of messages.",
        )
    if not ids and settings.bos_token_id is not None:
        ids = [settings.bos_token_id]
    if not ids:
        raise UsageError(f"prompt {index} is empty", hint="Pass at least one character.")
    tag = settings.think_start
    return ids, bool(tag and text.rstrip().endswith(tag))


def new_token_limit(prompt_tokens: int, max_new_tokens: int | None, context_tokens: int, index: int) -> int:
    """Maximum length of the text in tokens, prompt included. Raises UsageError if it exceeds the context."""
    if prompt_tokens >= context_tokens:
        raise UsageError(
            f"prompt {index} has {prompt_tokens} tokens, but the model's context is {context_tokens}, answer included",
            hint="Shorten the prompt.",
        )
    if max_new_tokens is None:
        return context_tokens
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(
            f"max_new_tokens must be an integer, at least 1, not {max_new_tokens}",
            hint="Omit it to generate until the model ends the text.",
        )
    if prompt_tokens + max_new_tokens > context_tokens:
        raise UsageError(
            f"prompt {index} has {prompt_tokens} tokens; with {max_new_tokens} new ones that is more than the model's "
            f"context of {context_tokens}",
            hint=f"Set max_new_tokens to at most {context_tokens - prompt_tokens}, or shorten the prompt.",
        )
    return prompt_tokens + max_new_tokens


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings. Raises UsageError if one is empty or not a string."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise UsageError(f"a stop string must be a non-empty string, not {one!r}", hint="Remove it.")
    return stops
