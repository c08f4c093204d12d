"""One run of a decoder: new tokens go in after those in the cache, logits of the wanted positions come out."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.errors import BundleError
from edgecompress.runtime.cancellation import Cancellation, CancelledError
from edgecompress.runtime.model import CachedModel
from edgecompress.types.arrays import FloatArray, IntArray
from edgecompress.types.bundle import GenerationSettings


class Decoder:
    """A model with the inputs and outputs of a decoder bundle. Thread-safe if each thread has its own cache."""

    def __init__(self, model: CachedModel, settings: GenerationSettings) -> None:
        """Raises BundleError if the dtype of the model's cache is not the one in the settings."""
        self.model, self.settings, self.tensors = model, settings, model.tensors
        for tensor in self.tensors:
            if tensor.dtype.name != settings.kv_dtype:
                raise BundleError(
                    f"the KV cache is {settings.kv_dtype} in the manifest, but {tensor.dtype} in the model",
                    hint="Export the student again with this version.",
                )

    def make_cache(self, rows: int, capacity_tokens: int) -> Any:
        """Raises HostError if there is not enough memory."""
        return self.model.make_cache(rows, capacity_tokens)

    def run(
        self, cache: Any, first_row: int, ids: IntArray, past: IntArray, wanted: IntArray, cancel: Cancellation
    ) -> tuple[FloatArray, float]:
        """Run ``ids`` int64 [B, T] in cache rows ``first_row`` to ``first_row + B``, after ``past`` int64 [B] tokens.

        Returns logits float32 [B, N, V] at the positions ``wanted`` int64 [N], and the seconds spent in the model. The
        logits are overwritten by the next run with this cache. Raises CancelledError if ``cancel`` was set, and
        whatever the model raises.
        """
        if cancel.is_set():
            raise CancelledError
        batch, width = ids.shape
        feed = {
            "input_ids": ids,
            "attention_mask": self.model.mask(past + width),
            "position_ids": past[:, None] + np.arange(width, dtype=np.int64),
            "logits_positions": wanted,
        }
        logits = cache.logits(batch, len(wanted), self.settings.vocab_size)
        return logits, self.model.run(cache, first_row, feed, {"logits": logits}, cancel)

    def close(self) -> None:
        self.model.close()


def read_prompt(decoder: Decoder, cache: Any, row: int, ids: IntArray, cancel: Cancellation) -> FloatArray:
    """Run ``ids`` int64 [T] into an empty row of the cache, in chunks; return the last position's logits, float32 [V].

    They are overwritten by the next run with this cache. Raises the errors of :meth:`Decoder.run`.
    """
    chunk = decoder.settings.prefill_chunk_tokens
    for start in range(0, len(ids), chunk):
        part = ids[None, start : start + chunk]
        last = np.array([part.shape[1] - 1], dtype=np.int64)
        logits, _ = decoder.run(cache, row, part, np.array([start], dtype=np.int64), last, cancel)
    found: FloatArray = logits[0, 0]
    return found
