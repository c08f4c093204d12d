"""The results of generation: pieces of a stream, the whole text, and statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["answer", "reasoning"]
Finish = Literal["eos", "stop", "length", "cancelled"]
"""Why a text ended: end-of-text token, stop string, ``max_new_tokens`` or the context's end, ``cancel()``."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a streamed text. ``print(piece, end="")`` prints its text.

    Pieces never contain part of a character, or a reasoning tag.
    """

    text: str
    """The new text."""
    kind: Kind = "answer"
    """``"reasoning"`` for text between the checkpoint's reasoning tags, else ``"answer"``."""
    token_ids: tuple[int, ...] = ()
    """Tokens since the previous piece. A token whose text was held back belongs to the piece with that text."""

    def __str__(self) -> str:
        return self.text


class Generated(str):
    """The new text as a ``str``, including reasoning tags, with details of its generation as attributes."""

    answer: str
    """The text outside the reasoning tags."""
    reasoning: str
    """The text inside the reasoning tags; ``""`` if the checkpoint has none."""
    token_ids: tuple[int, ...]
    """All new tokens, including the one that ended the text."""
    finish: Finish
    """Why the text ended: ``"eos"``, ``"stop"``, ``"length"`` or ``"cancelled"``."""

    def __new__(
        cls, text: str, *, answer: str, reasoning: str, token_ids: tuple[int, ...], finish: Finish
    ) -> Generated:
        made = super().__new__(cls, text)
        made.answer, made.reasoning, made.token_ids, made.finish = answer, reasoning, token_ids, finish
        return made


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of one generating call, summed over its prompts.

    Times do not include what the reader of a stream does between two pieces.
    """

    prompt_tokens: int
    """Tokens in the prompts."""
    reused_tokens: int
    """Prompt tokens found in the session's KV cache, which were not run again."""
    new_tokens: int
    """Generated tokens."""
    ttft_ms: float
    """Time to first token (TTFT), from the call: tokenization, cache allocation and prefill."""
    prefill_tokens_per_s: float
    """Prefill throughput, over the tokens that were not reused."""
    decode_tokens_per_s: float
    """Decode throughput, from the first new token to the last; 0 for a single token."""
    prefill_runs: int
    """Model runs during prefill."""
    decode_runs: int
    """Model runs during decode."""
    outside_run_ms: float
    """Decode time outside the model: sampling, text, binding."""
    outside_run_share: float
    """``outside_run_ms`` as a share of the decode time, 0 to 1."""
    drafted_tokens: int
    """Tokens drafted by prompt lookup."""
    accepted_tokens: int
    """Drafted tokens that the model accepted."""
    kv_cache_dtype: str
    """Dtype of keys and values, such as ``"float32"`` or ``"int8"``."""
    kv_cache_bytes: int
    """Size of the KV cache."""
    kv_cache_tokens: int
    """Capacity of each row of the KV cache, in tokens."""
    bytes_copied: int
    """Bytes of keys and values copied when the cache grew or a finished row's slot was reused."""
    bytes_copied_per_token: float
    """``bytes_copied`` per new token."""
    finish: tuple[Finish, ...]
    """Why each text ended, one entry per prompt."""


@dataclass(kw_only=True)
class Meter:
    """Counters of a call while it runs. Times in seconds."""

    started: float
    suspended: float = 0.0  # while the reader of a stream held the generator
    prefill_ended: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    prefill_runs: int = 0
    decode_runs: int = 0
    decode_run_s: float = 0.0
    prefilled_tokens: int = 0
    prefill_s: float = 0.0
    reused_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decoded_tokens: int = 0
    copied_before: int = 0
    finish: list[Finish] = field(default_factory=list)
