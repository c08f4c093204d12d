"""One run of a decoder: new tokens in, behind what the cache holds; logits of the wanted positions out."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgecompress.errors import BundleError
from edgecompress.runtime.cache import KVCache, cache_tensors
from edgecompress.types.bundle import GenerationSettings

if TYPE_CHECKING:
    from edgecompress.runtime.cuda.device import Device
    from edgecompress.runtime.device_cache import DeviceCache

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class CancelledError(Exception):
    """A generation was cancelled from outside; it never reaches the user."""


class Cancellation:
    """Set from any thread; the run that is under way ends at its next node."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        # onnxruntime asks for this entry at each run, and takes a fifth of a millisecond to find that it is not there.
        self.options.add_run_config_entry("gpu_graph_id", "-1")
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()
        self.options.terminate = True

    def is_set(self) -> bool:
        return self._event.is_set()


class Decoder:
    """A session with the inputs and outputs of a decoder bundle. May be used from several threads, a cache each."""

    def __init__(
        self, session: ort.InferenceSession, settings: GenerationSettings, model: str, device: Device | None = None
    ) -> None:
        """``device``: where its cache lies, if the session is on a GPU."""
        self._session, self._model, self._device = session, model, device
        self.settings = settings
        self._inputs = {i.name for i in session.get_inputs()}
        self.tensors = cache_tensors(session, settings)
        missing = {"input_ids", "attention_mask"} - self._inputs
        if missing or not self.tensors:
            raise BundleError(
                f"'{model}' is no decoder: it has no input '{min(missing, default='past_key_values.0.key')}'",
                hint="Export it again with this version.",
            )

    def make_cache(self, rows: int, capacity_tokens: int) -> KVCache | DeviceCache:
        """Raises HostError where there is no memory for it."""
        if self._device is None:
            return KVCache(self.tensors, rows, capacity_tokens)
        from edgecompress.runtime.device_cache import DeviceCache

        return DeviceCache(self._device, self.tensors, rows, capacity_tokens, grows=True)

    def close(self) -> None:
        """Nothing is left to do: the session is freed when the last run that holds it has ended."""

    def run(
        self,
        cache: KVCache | DeviceCache,
        first_row: int,
        ids: IntArray,
        past: IntArray,
        wanted: IntArray,
        cancel: Cancellation,
    ) -> tuple[FloatArray, float]:
        """Run ``ids`` int64 [B, T] behind the ``past`` int64 [B] tokens of rows ``first_row`` to ``first_row + B``.

        Returns logits float32 [B, N, V] of the positions ``wanted`` int64 [N], in memory that the cache's next run
        writes over, and the seconds inside ONNX Runtime.
        Raises CancelledError if ``cancel`` was set, BundleError if ONNX Runtime fails.
        """
        if cancel.is_set():
            raise CancelledError
        batch, width = ids.shape
        totals = past + width
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": (np.arange(totals.max()) < totals[:, None]).astype(np.int64),
            "position_ids": past[:, None] + np.arange(width, dtype=np.int64),
            "logits_positions": wanted,
        }
        binding = cache.binding(self._session, first_row, batch)
        for name, array in feeds.items():
            if name in self._inputs:
                binding.feed(name, array)
        logits = cache.logits(batch, len(wanted), self.settings.vocab_size)
        binding.receive("logits", logits)
        started = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding.io, cancel.options)
        except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeError
            if cancel.is_set():
                raise CancelledError from error
            raise BundleError(
                f"onnxruntime {ort.__version__} cannot run '{self._model}': {str(error).splitlines()[0][:300]}",
                hint="Check the bundle with `edgecompress verify`, or export it again.",
            ) from error
        return logits, time.perf_counter() - started
