"""What generation gives back: pieces while it runs, the text at its end, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["answer", "reasoning"]
Finish = Literal["eos", "stop", "length", "cancelled"]
"""Why a text ended: the model's own end, a stop string, max_new_tokens or the context, or cancel()."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a stream, whole characters only; ``print(piece, end="")`` prints its text.

    Reasoning tags are in no piece: ``kind`` says which side of them the text is on. ``token_ids`` are the tokens that
    came in since the piece before; a token whose text is held back counts to the piece that brings the text.
    """

    text: str
    kind: Kind = "answer"
    token_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


class Generated(str):
    """The new text, reasoning tags included, as a plain string that also knows how it came about."""

    answer: str  # the text outside the reasoning
    reasoning: str  # "" where the checkpoint has no reasoning tags
    token_ids: tuple[int, ...]  # every new token, the one that ended the text included
    finish: Finish

    def __new__(
        cls, text: str, *, answer: str, reasoning: str, token_ids: tuple[int, ...], finish: Finish
    ) -> Generated:
        made = super().__new__(cls, text)
        made.answer, made.reasoning, made.token_ids, made.finish = answer, reasoning, token_ids, finish
        return made


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one call. Wall times leave out what the reader of a stream did between two pieces."""

    prompt_tokens: int
    reused_tokens: int  # of the prompt, found in the session's KV cache
    new_tokens: int
    ttft_ms: float  # from the call to the first token: tokenization, cache and prefill
    prefill_tokens_per_s: float  # of the tokens that were not reused
    decode_tokens_per_s: float  # from the first token to the last; 0 for one token alone
    prefill_runs: int
    decode_runs: int
    outside_run_ms: float  # of the decode steps, outside ONNX Runtime: sampling, text, binding
    outside_run_share: float  # the same as a share of the decode's wall time
    drafted_tokens: int  # by prompt lookup
    accepted_tokens: int
    kv_cache_dtype: str  # "float32" or "int8"
    kv_cache_bytes: int
    kv_cache_tokens: int  # the capacity of each row
    bytes_copied: int  # of keys and values, by growing the cache or closing the gap of a finished row
    bytes_copied_per_token: float
    finish: tuple[Finish, ...]  # one a prompt


@dataclass(kw_only=True)
class Meter:
    """What a call takes, counted as it happens. Seconds."""

    started: float
    suspended: float = 0.0  # while the reader of a stream held it
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
