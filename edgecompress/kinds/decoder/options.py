"""Checks of what a caller of a generator gives, and the special tokens that a chat template can name."""

from __future__ import annotations

from edgecompress.errors import UsageError
from edgecompress.runtime.prompts import Single, split_batch
from edgecompress.runtime.sampling import Sampling
from edgecompress.runtime.text import PromptTokenizer
from edgecompress.types.bundle import GenerationSettings


def closed_error() -> UsageError:
    return UsageError("this bundle was closed", hint="Load it again.")


def single_prompt(prompt: Single) -> Single:
    """Raises UsageError for a list of prompts."""
    prompts, batched = split_batch(prompt)
    if batched:
        raise UsageError("a stream takes one prompt, not a list of prompts", hint="Pass the list to generate().")
    return prompts[0]


def lookup_count(count: int, sampling: Sampling, prompts: int) -> int:
    """The number of drafted tokens per run. Raises UsageError where drafts are not possible."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UsageError(f"lookup_tokens must be an integer, 0 (off) or more, not {count!r}", hint="Try 8.")
    if count and (sampling.temperature != 0 or prompts > 1):
        what = "one prompt at a time" if prompts > 1 else "temperature 0"
        raise UsageError(f"lookup_tokens works only with {what}", hint="Omit it, or set it to 0.")
    return count


def special_tokens(tokenizer: PromptTokenizer, settings: GenerationSettings) -> dict[str, str]:
    """The texts of the bundle's special tokens, by their names in chat templates."""
    eos = settings.eos_token_ids[0] if settings.eos_token_ids else None
    ids = {"bos_token": settings.bos_token_id, "eos_token": eos, "pad_token": settings.pad_token_id}
    named = {name: tokenizer.token(token_id) for name, token_id in ids.items()}
    return {name: token for name, token in named.items() if token is not None}
