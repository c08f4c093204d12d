"""Texts as the arrays that a graph takes, for calibration and verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgecompress.types.student import Student

Feed = dict[str, npt.NDArray[Any]]


def text_feeds(tokenizer_path: Path, student: Student, texts: Sequence[str], max_length_tokens: int) -> list[Feed]:
    """One feed a text, without padding: int64 [1, T] each of input_ids, attention_mask and token_type_ids."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(max_length_tokens, student.max_length_tokens or max_length_tokens))
    prompt = student.prompts.get(student.default_prompt or "", "")
    prepared = [prompt + (text.lower() if student.lower_case else text) for text in texts]
    feeds = []
    for encoding in tokenizer.encode_batch(prepared):
        ids = np.array([encoding.ids], dtype=np.int64)
        feeds.append(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.array([encoding.type_ids], dtype=np.int64),
            }
        )
    return feeds


def in_batches(feeds: Sequence[Feed], size: int, pad_token_id: int) -> list[tuple[list[int], Feed]]:
    """Feeds of one sample each, sorted by length and padded together, with the positions they had.

    This is how the runtime meets them: a range taken from the batch sees the padding and the neighbours too.
    """
    if "input_ids" not in feeds[0]:
        order = list(range(len(feeds)))
    else:
        order = sorted(range(len(feeds)), key=lambda i: -feeds[i]["input_ids"].shape[1])
    batches = []
    for start in range(0, len(order), size):
        positions = order[start : start + size]
        batches.append((positions, stack([feeds[i] for i in positions], pad_token_id)))
    return batches


def stack(feeds: Sequence[Feed], pad_token_id: int, *, at_least: int = 0) -> Feed:
    """One feed [N, …] of feeds [1, …]; texts are padded on the right to the longest, or to ``at_least`` tokens."""
    if "input_ids" not in feeds[0]:
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    width = max(at_least, *(feed["input_ids"].shape[1] for feed in feeds))
    stacked = {}
    for name in feeds[0]:
        fill = pad_token_id if name == "input_ids" else 0
        rows = [np.pad(f[name], ((0, 0), (0, width - f[name].shape[1])), constant_values=fill) for f in feeds]
        stacked[name] = np.concatenate(rows)
    return stacked
