"""One run of a decoder: new tokens in, behind what the cache holds; logits of the wanted positions out."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.errors import BundleError
from edgecompress.runtime.cancellation import Cancellation, CancelledError
from edgecompress.runtime.model import CachedModel
from edgecompress.types.arrays import FloatArray, IntArray
from edgecompress.types.bundle import GenerationSettings


class Decoder:
    """A model with the inputs and outputs of a decoder bundle. May be used from several threads, a cache each."""

    def __init__(self, model: CachedModel, settings: GenerationSettings) -> None:
        """Raises BundleError if the model's cache is not of the dtype that the settings name."""
        self.model, self.settings, self.tensors = model, settings, model.tensors
        for tensor in self.tensors:
            if tensor.dtype.name != settings.kv_dtype:
                raise BundleError(
                    f"the manifest says that the KV cache is {settings.kv_dtype}, and the model takes {tensor.dtype}",
                    hint="Export it again with this version.",
                )

    def make_cache(self, rows: int, capacity_tokens: int) -> Any:
        """Raises HostError where there is no memory for it."""
        return self.model.make_cache(rows, capacity_tokens)

    def run(
        self, cache: Any, first_row: int, ids: IntArray, past: IntArray, wanted: IntArray, cancel: Cancellation
    ) -> tuple[FloatArray, float]:
        """Run ``ids`` int64 [B, T] behind the ``past`` int64 [B] tokens of rows ``first_row`` to ``first_row + B``.

        Returns logits float32 [B, N, V] of the positions ``wanted`` int64 [N], in memory that the cache's next run
        writes over, and the seconds inside the model. Raises CancelledError if ``cancel`` was set, and what the model
        raises.
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
    """Run ``ids`` int64 [T] into an empty row of the cache, in chunks; the logits behind them, float32 [V].

    They lie in memory that the cache's next run writes over. Raises as :meth:`Decoder.run`.
    """
    chunk = decoder.settings.prefill_chunk_tokens
    for start in range(0, len(ids), chunk):
        part = ids[None, start : start + chunk]
        last = np.array([part.shape[1] - 1], dtype=np.int64)
        logits, _ = decoder.run(cache, row, part, np.array([start], dtype=np.int64), last, cancel)
    found: FloatArray = logits[0, 0]
    return found
