"""Shapes of calls as the command line has them, and arrays of such shapes."""

from __future__ import annotations

import re

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.types.arrays import IntArray
from edgecompress.types.workload import Workload

MOST_TOKENS = 1 << 20
"""Of a text that is asked for."""
_MOST_ITEMS = 4096
_PAIR = re.compile(r"(\d+)x(\d+)")
_WORD_IDS = (1000, 20000)  # ids of words in every vocabulary of that size
_TEXTS_HINT = "Give texts times tokens, such as 1x128 or 8x128, or trace:FILE.jsonl."


def parse_pair(text: str, hint: str, items: str = "texts") -> tuple[int, int]:
    """``8x128``: items in a call, and the size of each. Raises UsageError."""
    match = _PAIR.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is no shape", hint=hint)
    batch, size = int(match[1]), int(match[2])
    if not 1 <= batch <= _MOST_ITEMS or size > MOST_TOKENS:
        raise UsageError(f"the shape {text} is out of range", hint=f"Give 1 to {_MOST_ITEMS} {items}.")
    return batch, size


def parse_texts(text: str) -> Workload:
    """``8x128``: texts in a call times tokens of each. Raises UsageError."""
    batch, tokens = parse_pair(text, _TEXTS_HINT)
    return Workload(name=text, batch=batch, sizes={"tokens": tokens})


def token_ids(batch: int, tokens: int, vocab_size: int | None = None) -> IntArray:
    """int64 [B, T], the same each time: words of a vocabulary of at least twenty thousand unless its size is given."""
    low, high = _WORD_IDS
    if vocab_size is not None and vocab_size <= high:
        low, high = min(10, vocab_size - 1), vocab_size
    return np.random.default_rng(batch * 100_003 + tokens).integers(low, high, (batch, tokens))


def token_feed(ids: IntArray) -> dict[str, IntArray]:
    """What graphs of texts take, for texts without padding of token ids int64 [B, T]."""
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def compared_tokens(workload: Workload) -> tuple[int, int]:
    """Texts and tokens of each. Raises UsageError for what texts are not compared on."""
    tokens = workload.sizes.get("tokens", 0)
    if not tokens:
        raise UsageError(f"{workload.name}: sides are compared on shapes of texts", hint="Give --shapes 1x128.")
    return workload.batch, tokens


def require_fits(name: str, workload: Workload, most_tokens: int) -> None:
    """Raises UsageError for texts that are longer than ``name``, a bundle, takes."""
    if workload.sizes["tokens"] > most_tokens:
        raise UsageError(
            f"no such shape for {name}: {workload.name}; a text has at most {most_tokens} tokens",
            hint=f"Give --shapes 1x{min(128, most_tokens)}, for example.",
        )
