"""Texts as graph inputs, for calibration and verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgecompress.types.arrays import Feed
from edgecompress.types.student import Student


def text_feeds(tokenizer_path: Path, student: Student, texts: Sequence[str], max_length_tokens: int) -> list[Feed]:
    """One unpadded feed per text: input_ids, attention_mask and token_type_ids, int64 [1, T] each."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(max_length_tokens, student.max_length_tokens or max_length_tokens))
    prompt = student.prompts.get(student.default_prompt or "", "")
    prepared = [prompt + (text.lower() if student.lower_case else text) for text in texts]
    feeds: list[Feed] = []
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
