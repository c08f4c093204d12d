"""Tokenizes texts, and groups token arrays into batches with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgecompress.errors import UsageError
from edgecompress.types.arrays import IntArray
from edgecompress.types.bundle import TextSettings

Text = str | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One tokenized text."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]


class TextTokenizer:
    """A tokenizers.Tokenizer that is configured once and never changed, so threads can share it."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        self.settings = settings
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_length_tokens)

    def encode(self, texts: Sequence[Text], *, prompt: str, truncate: bool, first_index: int = 0) -> list[Tokens]:
        """Raises UsageError with the index of a text that is not a string, or too long while ``truncate`` is False."""
        prepared = [self._prepare(text, prompt, first_index + i) for i, text in enumerate(texts)]
        encodings = self._tokenizer.encode_batch(prepared)
        if not truncate:
            for index, encoding in enumerate(encodings):
                if encoding.overflowing:
                    limit = self.settings.max_length_tokens
                    raise UsageError(
                        f"text {first_index + index} is longer than the model's {limit} tokens",
                        hint="Split the text, or cut it with truncate=True (--truncate).",
                    )
        return [
            Tokens(ids=e.ids, type_ids=e.type_ids, offsets=e.offsets, sequence_ids=e.sequence_ids) for e in encodings
        ]

    def _prepare(self, text: Text, prompt: str, index: int) -> Text:
        if isinstance(text, str):
            text = prompt + text
            return text.lower() if self.settings.lower_case else text
        if isinstance(text, tuple) and len(text) == 2 and all(isinstance(t, str) for t in text):
            return (text[0].lower(), text[1].lower()) if self.settings.lower_case else text
        raise UsageError(f"text {index} is a {type(text).__name__}, not a string", hint="Pass a list of strings.")

    def token_to_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def plan_batches(
    lengths: Sequence[int], batch_size: int, batch_tokens: int, *, mixed: bool = False
) -> Iterator[list[int]]:
    """Yield the text indices of each batch, longest texts first.

    A batch has at most ``batch_size`` texts and ``batch_tokens`` tokens. All its texts have the same length, so there
    is no padding, unless ``mixed`` is set (for a GPU, or for a graph that skips padding). A CPU runs a single text
    efficiently: padding costs more than another call, and a batch whose activations overflow the CPU's cache is slower
    than two that fit.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    tokens = 0
    for index in order:
        length = lengths[index]
        full = len(batch) >= batch_size or tokens + length > batch_tokens
        if batch and (full or (length != lengths[batch[0]] and not mixed)):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


def pad(tokens: Sequence[Tokens], pad_token_id: int) -> dict[str, IntArray]:
    """Return input_ids, attention_mask and token_type_ids, int64 [B, T] each, padded on the right."""
    width = max(len(t.ids) for t in tokens)
    ids = np.full((len(tokens), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    types = np.zeros_like(ids)
    for row, t in enumerate(tokens):
        ids[row, : len(t.ids)] = t.ids
        mask[row, : len(t.ids)] = 1
        types[row, : len(t.ids)] = t.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
