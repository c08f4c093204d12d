"""ONNX Runtime sessions as models. The backend decides where the KV cache is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgecompress.errors import BundleError
from edgecompress.runtime.cache import CacheTensor, cache_tensors
from edgecompress.runtime.cancellation import Cancellation, CancelledError
from edgecompress.types.arrays import Array, Feed, IntArray
from edgecompress.types.bundle import TensorSpec, Variant


class SessionModel:
    """A session as a :class:`~edgecompress.runtime.model.Model`."""

    def __init__(self, session: ort.InferenceSession, variant: Variant) -> None:
        self._session = session
        self.inputs: tuple[TensorSpec, ...] = variant.inputs
        self.outputs: tuple[TensorSpec, ...] = variant.outputs
        self._names = [value.name for value in session.get_inputs()]

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        outputs: list[Array] = self._session.run(wanted, {name: feed[name] for name in self._names})
        return outputs

    def close(self) -> None:
        """Does nothing: the session is freed when the last run that uses it ends."""


class CachedSessionModel:
    """A session whose past and present share memory, as a :class:`~edgecompress.runtime.model.CachedModel`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        path: str,
        make_cache: Callable[[tuple[CacheTensor, ...], int, int], Any],
    ) -> None:
        """``make_cache``: (tensors, rows, capacity in tokens) -> cache. Raises BundleError if it has no cache."""
        self._session, self._path, self._make_cache = session, path, make_cache
        self.tensors = cache_tensors(session)
        every = {value.name for value in session.get_inputs()}
        self.names = frozenset(every - {tensor.past for tensor in self.tensors})
        missing = {"input_ids", "attention_mask"} - every
        if missing or not self.tensors:
            raise BundleError(
                f"'{path}' is not a decoder: it has no input '{min(missing, default='past_key_values.0.key')}'",
                hint="Export the student again with this version.",
            )

    def make_cache(self, rows: int, capacity_tokens: int) -> Any:
        return self._make_cache(self.tensors, rows, capacity_tokens)

    def mask(self, totals: IntArray) -> IntArray:
        return (np.arange(totals.max()) < totals[:, None]).astype(np.int64)

    def run(self, cache: Any, first_row: int, feed: Feed, into: Mapping[str, Array], cancel: Cancellation) -> float:
        batch = len(next(iter(feed.values())))
        binding = cache.binding(self._session, first_row, batch)
        for name, array in feed.items():
            if name in self.names:
                binding.feed(name, array)
        for name, array in into.items():
            binding.receive(name, array)
        started = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding.io, cancel.options)
        except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeError
            if cancel.is_set():
                raise CancelledError from error
            raise BundleError(
                f"onnxruntime {ort.__version__} cannot run '{self._path}': {str(error).splitlines()[0][:300]}",
                hint="Run `edgecompress verify BUNDLE`, or export the student again.",
            ) from error
        return time.perf_counter() - started

    def close(self) -> None:
        """Does nothing: the session is freed when the last run that uses it ends."""
