"""Runs of an engine: arrays of the host in, arrays of the host out, and what stays on the device between runs.

All of a run is put on one stream: copies in, the engine, copies out. A run that is like one before, in shapes and in
where everything lies, is captured as a CUDA graph the second time and launched as one from then on; TensorRT-RTX does
that by itself. Runs of several threads wait for each other.
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
    """A tensor that is there already, and stays there."""

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
        """Wait for what runs and free everything. A second call does nothing."""
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
        with contextlib.suppress(Exception):  # nobody closed it
            self.close()

    @contextlib.contextmanager
    def timing(self) -> Iterator[dict[str, list[float]]]:
        """Within it each stage of a run is waited for, and its seconds are added under its name of STAGES.

        Such a run is no CUDA graph, and longer than one that is not timed.
        """
        self._stages = {name: [] for name in STAGES}
        try:
            yield self._stages
        finally:
            self._stages = None

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises UsageError if the engine was not built for that shape of an input."""
        of = self._profile.get(name)
        if of is None:
            return
        if len(shape) == len(of.largest) and all(
            low <= size <= high for low, size, high in zip(of.smallest, shape, of.largest, strict=True)
        ):
            return
        spelled, low, high = ("×".join(map(str, sizes)) for sizes in (shape, of.smallest, of.largest))
        raise UsageError(
            f"'{name}' is {spelled}, and the engine was built for {low} to {high}",
            hint="Give fewer or shorter texts, or export with a larger --engine-batch, --engine-tokens or "
            "--engine-context.",
        )

    def run(
        self,
        feed: Feed,
        there: Mapping[str, OnDevice] | None = None,
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Outputs by name, float16 as float32: in the arrays of ``into`` where it has one, else in new ones.

        ``there``: inputs that lie on the device. An output that shares the memory of one of these is written there and
        not returned. Raises UsageError for a shape outside the profile, DeviceMemoryError, HostError.
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
            for name, found in results.items():  # the next run, of another thread maybe, writes over them
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
        """The first time step by step, the second time into a graph, which is launched then and from then on."""
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
        """None where the engine does something that cannot be captured: it is run step by step from then on."""
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
                f"the engine does not take '{name}': {self.file.said()}",
                hint="Check the bundle with `edgecompress verify`, or: edgecompress build BUNDLE --force.",
            )

    def _failure(self) -> HostError:
        said = self.file.said()
        if is_out_of_memory(said):
            return DeviceMemoryError(
                f"the GPU ran out of memory: {said}", hint="Take a smaller batch, or close what else uses the GPU."
            )
        return HostError(
            f"the engine failed: {said}", hint="`nvidia-smi` shows the GPU's state; load the bundle again."
        )
