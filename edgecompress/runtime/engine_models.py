"""Engines of TensorRT and TensorRT-RTX as models, with their KV cache on the device.

A decoder's engine reads as much of the cache as ``attention_mask`` is long, and derives the mask itself from the
positions. The length is rounded up to a multiple of 128, so that a run with one more token has the same shapes and
reuses the same CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from edgecompress.errors import BundleError, HostError, UsageError
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.cache import CACHE_DTYPES, PAST, PRESENT, CacheTensor
from edgecompress.runtime.cancellation import Cancellation, CancelledError
from edgecompress.runtime.cuda.choice import open_device
from edgecompress.runtime.device_cache import DeviceCache, beyond
from edgecompress.runtime.engine_file import EngineFile, EngineLibrary
from edgecompress.runtime.engine_runner import EngineRunner
from edgecompress.types.arrays import Array, Feed, IntArray
from edgecompress.types.bundle import TensorSpec, Variant

_STEP = 128  # tokens


class EngineModel:
    """An engine as a :class:`~edgecompress.runtime.model.Model`."""

    def __init__(self, runner: EngineRunner, variant: Variant) -> None:
        self.runner = runner
        names = {tensor.name for tensor in runner.inputs}
        self.inputs: tuple[TensorSpec, ...] = tuple(spec for spec in variant.inputs if spec.name in names)
        self.outputs: tuple[TensorSpec, ...] = variant.outputs
        self._names = [tensor.name for tensor in runner.inputs]

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        found = self.runner.run({name: feed[name] for name in self._names})
        return [found[name] for name in wanted or [output.name for output in self.outputs]]

    def timing(self) -> AbstractContextManager[Mapping[str, list[float]]]:
        return self.runner.timing()

    def close(self) -> None:
        self.runner.close()


class CachedEngineModel:
    """An engine that writes its cache in place, as a :class:`~edgecompress.runtime.model.CachedModel`."""

    def __init__(self, runner: EngineRunner, name: str) -> None:
        """``name`` is the bundle's. Raises BundleError unless it is a decoder that updates its cache in place."""
        self.runner = runner
        shared = {t.shares: t.name for t in runner.outputs if t.shares}
        tensors = []
        for tensor in runner.inputs:
            if not tensor.name.startswith(PAST):
                continue
            present = PRESENT + tensor.name.removeprefix(PAST)
            if shared.get(tensor.name) != present or tensor.dtype not in CACHE_DTYPES.values():
                raise BundleError(
                    f"the engine of {name} does not update '{tensor.name}' in place: '{present}' has memory of its own",
                    hint="Export again with this version, and build with TensorRT 10.15 or later.",
                )
            _, heads, self._capacity, size = tensor.shape
            tensors.append(
                CacheTensor(past=tensor.name, present=present, heads=heads, head_size=size, dtype=tensor.dtype)
            )
        self.names = frozenset({tensor.name for tensor in runner.inputs} - {tensor.past for tensor in tensors})
        missing = {"input_ids", "attention_mask", "position_ids"} - self.names
        if missing or not tensors:
            raise BundleError(
                f"the engine of {name} is not a decoder: it has no input '{min(missing, default=f'{PAST}0.key')}'",
                hint="Export the student again with this version.",
            )
        self.tensors = tuple(tensors)

    def make_cache(self, rows: int, capacity_tokens: int) -> DeviceCache:
        """Make a cache of the engine's fixed capacity. Raises UsageError if it has too few rows or tokens."""
        self.runner.check("input_ids", (rows, 1))
        if capacity_tokens > self._capacity:
            raise beyond(capacity_tokens, self._capacity)
        return DeviceCache(self.runner.device, self.tensors, rows, self._capacity, grows=False)

    def mask(self, totals: IntArray) -> IntArray:
        read = min(-(-int(totals.max()) // _STEP) * _STEP, self._capacity)
        return np.ones((len(totals), read), dtype=np.int64)

    def run(self, cache: Any, first_row: int, feed: Feed, into: Mapping[str, Array], cancel: Cancellation) -> float:
        """A run in progress finishes before it is cancelled. The seconds include copies and the engine."""
        batch = len(next(iter(feed.values())))
        started = time.perf_counter()
        try:
            self.runner.run(
                {name: array for name, array in feed.items() if name in self.names},
                cache.places(first_row, batch),
                into,
            )
        except UsageError as error:
            if cancel.is_set():  # the bundle was closed while this run waited for the lock
                raise CancelledError from error
            raise
        return time.perf_counter() - started

    def close(self) -> None:
        self.runner.close()


def open_engine(source: OpenBundle, name: str, library: EngineLibrary) -> EngineModel:
    """Raises HostError if the engine cannot run on this machine."""
    return EngineModel(_runner(source, name, library), source.variant(name))


def open_cached_engine(source: OpenBundle, name: str, library: EngineLibrary) -> CachedEngineModel:
    """Raises HostError if it cannot run on this machine, BundleError if it does not update a cache in place."""
    runner = _runner(source, name, library)
    try:
        return CachedEngineModel(runner, source.manifest.name)
    except BaseException:
        runner.close()
        raise


def _runner(source: OpenBundle, name: str, library: EngineLibrary) -> EngineRunner:
    variant = source.variant(name)
    if variant.engine is None:
        raise HostError(
            f"the engine of {source.manifest.name} is not built yet",
            hint="Run on the device: edgecompress build BUNDLE",
        )
    device = open_device(source.manifest, variant, source.device)
    return EngineRunner(EngineFile(source.manifest, variant, source.folder, device, library), device)
