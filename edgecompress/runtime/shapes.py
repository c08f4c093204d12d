"""Parses call shapes from the command line, and makes arrays of such shapes."""

from __future__ import annotations

import re

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.types.arrays import IntArray
from edgecompress.types.workload import Workload

MOST_TOKENS = 1 << 20
"""Maximum tokens of a requested text."""
_MOST_ITEMS = 4096
_PAIR = re.compile(r"(\d+)x(\d+)")
_WORD_IDS = (1000, 20000)  # ids of ordinary words in any vocabulary of that size
_TEXTS_HINT = "Give TEXTSxTOKENS, such as 1x128 or 8x128, or trace:FILE.jsonl."


def parse_pair(text: str, hint: str, items: str = "texts") -> tuple[int, int]:
    """Parse ``8x128``: items in a call, and the size of each. Raises UsageError."""
    match = _PAIR.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is not a shape", hint=hint)
    batch, size = int(match[1]), int(match[2])
    if not 1 <= batch <= _MOST_ITEMS or size > MOST_TOKENS:
        raise UsageError(f"shape {text} is out of range", hint=f"Give 1 to {_MOST_ITEMS} {items}.")
    return batch, size


def parse_texts(text: str) -> Workload:
    """Parse ``8x128``: texts in a call, and tokens per text. Raises UsageError."""
    batch, tokens = parse_pair(text, _TEXTS_HINT)
    return Workload(name=text, batch=batch, sizes={"tokens": tokens})


def token_ids(batch: int, tokens: int, vocab_size: int | None = None) -> IntArray:
    """int64 [B, T], reproducible; ids below ``vocab_size``, or ordinary words of a vocabulary of at least 20,000."""
    low, high = _WORD_IDS
    if vocab_size is not None and vocab_size <= high:
        low, high = min(10, vocab_size - 1), vocab_size
    return np.random.default_rng(batch * 100_003 + tokens).integers(low, high, (batch, tokens))


def token_feed(ids: IntArray) -> dict[str, IntArray]:
    """Inputs of a text graph for unpadded token ids int64 [B, T]."""
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def compared_tokens(workload: Workload) -> tuple[int, int]:
    """Texts, and tokens per text. Raises UsageError for a workload without a token count."""
    tokens = workload.sizes.get("tokens", 0)
    if not tokens:
        raise UsageError(f"compare needs shapes of texts, not {workload.name}", hint="Give --shapes 1x128.")
    return workload.batch, tokens


def require_fits(name: str, workload: Workload, most_tokens: int) -> None:
    """Raises UsageError for texts that are longer than the bundle ``name`` accepts."""
    if workload.sizes["tokens"] > most_tokens:
        raise UsageError(
            f"shape {workload.name} is too long for {name}: a text has at most {most_tokens} tokens",
            hint=f"Give a smaller one, such as --shapes 1x{min(128, most_tokens)}.",
        )
