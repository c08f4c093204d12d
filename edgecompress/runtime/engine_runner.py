"""Runs an engine: host arrays in, host arrays out; some tensors stay on the device between runs.

A run puts the copies in, the engine and the copies out on one stream. The second run with the same shapes and addresses
is captured as a CUDA graph, and later ones launch that graph; TensorRT-RTX does this by itself. Runs from several
threads wait for each other.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.errors import HostError, UsageError
from edgecompress.runtime.cuda.device import Device, DeviceMemoryError, Graph, is_out_of_memory
from edgecompress.runtime.cuda.memory import Staging
from edgecompress.runtime.engine_file import EngineFile
from edgecompress.types.arrays import Array, Feed

_MOST_GRAPHS = 32
STAGES = ("host-to-device", "compute", "device-to-host")


@dataclass(frozen=True)
class OnDevice:
    """A tensor that stays in device memory."""

    address: int
    shape: tuple[int, ...]


class EngineRunner:
    """One engine, its stream and its buffers."""

    def __init__(self, file: EngineFile, device: Device) -> None:
        self.file, self.device = file, device
        self.inputs = [t for t in file.tensors.values() if t.is_input]
        self.outputs = [t for t in file.tensors.values() if not t.is_input]
        self._profile = file.record.profile
        self._lock = threading.Lock()
        self._stream: Any = device.make_stream()
        self._staging = {name: Staging(device) for name in file.tensors}
        self._seen: OrderedDict[tuple[Any, ...], Graph | None] = OrderedDict()
        self.captures = not file.captures_itself
        self._stages: dict[str, list[float]] | None = None
        self._closed = False

    def close(self) -> None:
        """Wait for the current run and free everything. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for graph in self._seen.values():
                if graph is not None:
                    self.device.free_graph(graph)
            self._seen.clear()
            self._staging.clear()
            self.file.close()
            self.device.free_stream(self._stream)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # not closed by the caller
            self.close()

    @contextlib.contextmanager
    def timing(self) -> Iterator[dict[str, list[float]]]:
        """Time each stage of the runs in this context; yields seconds by the stage names in STAGES.

        A timed run waits after each stage and does not use a CUDA graph, so it takes longer.
        """
        self._stages = {name: [] for name in STAGES}
        try:
            yield self._stages
        finally:
            self._stages = None

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises UsageError if the engine was not built for this input shape."""
        of = self._profile.get(name)
        if of is None:
            return
        if len(shape) == len(of.largest) and all(
            low <= size <= high for low, size, high in zip(of.smallest, shape, of.largest, strict=True)
        ):
            return
        spelled, low, high = ("×".join(map(str, sizes)) for sizes in (shape, of.smallest, of.largest))
        raise UsageError(
            f"'{name}' is {spelled}, but the engine was built for {low} to {high}",
            hint="Pass fewer or shorter texts, or export with a larger --engine-batch, --engine-tokens or "
            "--engine-context.",
        )

    def run(
        self,
        feed: Feed,
        there: Mapping[str, OnDevice] | None = None,
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Return outputs by name, float16 as float32, in the arrays of ``into`` where given and in new ones otherwise.

        ``there``: inputs that stay on the device. An output that shares their memory is written there and not returned.
        Raises UsageError for a shape outside the profile, DeviceMemoryError, HostError.
        """
        there, into = there or {}, into or {}
        for name, array in feed.items():
            self.check(name, array.shape)
        for name, tensor in there.items():
            self.check(name, tensor.shape)
        with self._lock:
            if self._closed:
                raise UsageError("this bundle was closed", hint="Load it again.")
            results = self._run(feed, there)
            for name, found in results.items():  # the next run, maybe of another thread, overwrites them
                if name in into:
                    into[name][...] = found
                else:
                    results[name] = found.astype(np.float32 if found.dtype == np.float16 else found.dtype)
            return {name: into.get(name, array) for name, array in results.items()}

    def _run(self, feed: Feed, there: Mapping[str, OnDevice]) -> dict[str, Array]:
        """Outputs in pinned memory."""
        context, device, stream = self.file.context, self.device, self._stream
        key: list[Any] = []
        incoming, outgoing, results = [], [], {}
        for tensor in self.inputs:
            name = tensor.name
            if name in there:
                address, shape = there[name].address, there[name].shape
            else:
                array = feed[name]
                shape, size = array.shape, array.size * tensor.dtype.itemsize
                host, own = self._staging[name].require(size)
                host.array(shape, tensor.dtype)[...] = array
                address = host.address if tensor.on_host else own.address
                if not tensor.on_host:
                    incoming.append((own.address, host.address, size))
                else:
                    key.append(array.tobytes())
            self._require(context.set_input_shape(name, shape), name)
            self._require(context.set_tensor_address(name, address), name)
            key.append((shape, address))
        for tensor in self.outputs:
            name = tensor.name
            if tensor.shares in there:
                self._require(context.set_tensor_address(name, there[tensor.shares].address), name)
                continue
            shape = tuple(context.get_tensor_shape(name))
            self._require(min(shape, default=0) >= 0, name)
            size = int(np.prod(shape)) * tensor.dtype.itemsize
            host, own = self._staging[name].require(size)
            address = host.address if tensor.on_host else own.address
            self._require(context.set_tensor_address(name, address), name)
            if not tensor.on_host:
                outgoing.append((host.address, own.address, size))
            results[name] = host.array(shape, tensor.dtype)
            key.append((shape, address))

        def upload() -> None:
            for to, source, size in incoming:
                device.upload(to, source, size, stream)

        def execute() -> None:
            if not context.execute_async_v3(device.stream_handle(stream)):
                raise self._failure()

        def download() -> None:
            for to, source, size in outgoing:
                device.download(to, source, size, stream)

        parts = (upload, execute, download)
        if self._stages is None:
            self._put(tuple(key), lambda: [part() for part in parts])
        else:
            for name, part in zip(STAGES, parts, strict=True):
                began = time.perf_counter()
                part()
                device.synchronize(stream)
                self._stages[name].append(time.perf_counter() - began)
        device.synchronize(stream)
        return results

    def _put(self, key: tuple[Any, ...], put: Callable[[], object]) -> None:
        """Run directly the first time; from the second time on, capture a CUDA graph once and launch it."""
        if not self.captures:
            put()
        elif key not in self._seen:
            put()
            self._seen[key] = None
            if len(self._seen) > _MOST_GRAPHS:
                _, oldest = self._seen.popitem(last=False)
                if oldest is not None:
                    self.device.free_graph(oldest)
        else:
            self._seen.move_to_end(key)
            graph = self._seen[key] or self._capture(put)
            self._seen[key] = graph
            if graph is None:
                put()
            else:
                self.device.launch(graph, self._stream)

    def _capture(self, put: Callable[[], object]) -> Graph | None:
        """None if the engine cannot be captured; it then always runs directly."""
        self.device.begin_capture(self._stream)
        failed = False
        try:
            put()
        except HostError:
            failed = True
        try:
            graph = self.device.end_capture(self._stream)
        except HostError:
            failed = True
        if failed:
            self.captures = False
            return None
        return graph

    def _require(self, worked: bool, name: str) -> None:
        if not worked:
            raise HostError(
                f"the engine rejects '{name}': {self.file.said()}",
                hint="Run: edgecompress verify BUNDLE, or: edgecompress build BUNDLE --force",
            )

    def _failure(self) -> HostError:
        said = self.file.said()
        if is_out_of_memory(said):
            return DeviceMemoryError(
                f"the GPU ran out of memory: {said}", hint="Use a smaller batch, or stop other programs on the GPU."
            )
        return HostError(
            f"the engine failed: {said}", hint="Load the bundle again; `nvidia-smi` shows the GPU's state."
        )
