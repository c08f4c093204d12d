"""A decoder's engine: as :class:`edgecompress.runtime.decoder.Decoder`, with its cache on the device.

The engine reads of the cache as much as ``attention_mask`` is long, and takes the mask itself from the positions. So it
is given a length in steps of 128: a run that is one token longer is the same run, and the same CUDA graph.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import BundleError, UsageError
from edgecompress.runtime.cache import CACHE_DTYPES, PAST, PRESENT, CacheTensor
from edgecompress.runtime.decoder import Cancellation, CancelledError, FloatArray, IntArray
from edgecompress.runtime.device_cache import DeviceCache, beyond
from edgecompress.runtime.engine_runner import EngineRunner
from edgecompress.types.bundle import GenerationSettings

_STEP = 128  # tokens


class EngineDecoder:
    """May be used from several threads, a cache each; their runs wait for each other."""

    def __init__(self, runner: EngineRunner, settings: GenerationSettings, name: str) -> None:
        """Raises BundleError if the engine is no decoder whose cache stays in place."""
        self.settings, self._runner = settings, runner
        shared = {t.shares: t.name for t in runner.outputs if t.shares}
        tensors = []
        for tensor in runner.inputs:
            if not tensor.name.startswith(PAST):
                continue
            present = PRESENT + tensor.name.removeprefix(PAST)
            if shared.get(tensor.name) != present or tensor.dtype not in CACHE_DTYPES.values():
                raise BundleError(
                    f"the engine of {name} does not write '{present}' in the memory of '{tensor.name}'",
                    hint="Export it again with this version, and build it with TensorRT 10.15 or later.",
                )
            _, heads, self._capacity, size = tensor.shape
            tensors.append(
                CacheTensor(past=tensor.name, present=present, heads=heads, head_size=size, dtype=tensor.dtype)
            )
        self._names = {tensor.name for tensor in runner.inputs} - {tensor.past for tensor in tensors}
        missing = {"input_ids", "attention_mask", "position_ids"} - self._names
        if missing or not tensors:
            raise BundleError(
                f"the engine of {name} is no decoder: it has no input '{min(missing, default=f'{PAST}0.key')}'",
                hint="Export it again with this version.",
            )
        self.tensors = tuple(tensors)

    def make_cache(self, rows: int, capacity_tokens: int) -> DeviceCache:
        """Of the engine's own capacity. Raises UsageError for more rows or tokens than it was built for."""
        self._runner.check("input_ids", (rows, 1))
        if capacity_tokens > self._capacity:
            raise beyond(capacity_tokens, self._capacity)
        return DeviceCache(self._runner.device, self.tensors, rows, self._capacity, grows=False)

    def close(self) -> None:
        self._runner.close()

    def run(
        self, cache: DeviceCache, first_row: int, ids: IntArray, past: IntArray, wanted: IntArray, cancel: Cancellation
    ) -> tuple[FloatArray, float]:
        """As :meth:`edgecompress.runtime.decoder.Decoder.run`; a run that is under way ends before it is cancelled.

        Seconds are those of copies and engine. Raises CancelledError, UsageError for more rows or tokens than the
        engine was built for, HostError.
        """
        if cancel.is_set():
            raise CancelledError
        batch, width = ids.shape
        longest = int(past.max()) + width
        read = min(-(-longest // _STEP) * _STEP, self._capacity)
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, read), dtype=np.int64),
            "position_ids": past[:, None] + np.arange(width, dtype=np.int64),
            "logits_positions": wanted,
        }
        logits = cache.logits(batch, len(wanted), self.settings.vocab_size)
        started = time.perf_counter()
        try:
            self._runner.run(
                {name: array for name, array in feeds.items() if name in self._names},
                cache.places(first_row, batch),
                {"logits": logits},
            )
        except UsageError as error:
            if cancel.is_set():  # the bundle was closed while this run waited for another
                raise CancelledError from error
            raise
        return logits, time.perf_counter() - started
