"""The interface of a CUDA device. :mod:`edgecompress.runtime.cuda.driver` has the real one.

Addresses are integers, sizes are bytes, and streams and graphs are opaque handles of their device. Work on a stream is
complete only after ``synchronize``: memory that it reads or writes must stay alive and unchanged until then. Every call
is thread-safe.
"""

from __future__ import annotations

from typing import Any, Protocol

from edgecompress.errors import HostError

Stream = Any
Graph = Any


class DeviceMemoryError(HostError):
    """The GPU does not have enough free memory."""


def is_out_of_memory(said: str) -> bool:
    """Whether a TensorRT message means out of memory; it has several wordings for that."""
    return "outofmemory" in said.lower().replace(" ", "")


class Device(Protocol):
    """One GPU. Calls raise DeviceMemoryError if memory is short and HostError if the device fails."""

    index: int

    def free_bytes(self) -> int: ...

    def allocate(self, size: int) -> int:
        """Allocate uninitialized device memory at an address that is a multiple of 256."""

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> int:
        """Allocate page-locked host memory, so that copies run asynchronously."""

    def free_pinned(self, address: int) -> None: ...

    def make_stream(self) -> Stream: ...

    def free_stream(self, stream: Stream) -> None: ...

    def stream_handle(self, stream: Stream) -> int:
        """The stream's native CUDA handle, for other libraries."""

    def upload(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy from pinned memory to the device."""

    def download(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy from the device to pinned memory."""

    def zero(self, target: int, size: int, stream: Stream) -> None: ...

    def copy_rows(
        self, target: int, source: int, *, rows: int, size: int, pitches: tuple[int, int], stream: Stream
    ) -> None:
        """Copy ``rows`` pieces of ``size`` bytes on the device. ``pitches``: bytes between pieces (target, source)."""

    def synchronize(self, stream: Stream) -> None: ...

    def begin_capture(self, stream: Stream) -> None:
        """Record the work put on the stream from now on instead of running it."""

    def end_capture(self, stream: Stream) -> Graph:
        """Return the recorded work, ready to launch. Raises HostError if part of it cannot be captured."""

    def launch(self, graph: Graph, stream: Stream) -> None: ...

    def free_graph(self, graph: Graph) -> None: ...
