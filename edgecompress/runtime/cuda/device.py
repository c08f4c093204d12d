"""What the runtime needs of a CUDA device. :mod:`edgecompress.runtime.cuda.driver` has the real one.

Addresses are integers, sizes are bytes, and a stream or a graph is a handle that only its device can read. What is put
on a stream has not happened before ``synchronize``: memory that it reads or writes must live and stay as it is until
then. Every call may be made from any thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from edgecompress.errors import HostError

Stream = Any
Graph = Any


class DeviceMemoryError(HostError):
    """The GPU has not enough memory left."""


def is_out_of_memory(said: str) -> bool:
    """Whether that is what a complaint of TensorRT's means: it has several spellings of it."""
    return "outofmemory" in said.lower().replace(" ", "")


class Device(Protocol):
    """One GPU. Calls raise DeviceMemoryError where memory is short and HostError where the device fails."""

    index: int

    def free_bytes(self) -> int: ...

    def allocate(self, size: int) -> int:
        """Memory on the device, at an address that is a multiple of 256. Its content is anything."""

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> int:
        """Memory of the host that is never paged out, so that copies need not wait for the host."""

    def free_pinned(self, address: int) -> None: ...

    def make_stream(self) -> Stream: ...

    def free_stream(self, stream: Stream) -> None: ...

    def stream_handle(self, stream: Stream) -> int:
        """CUDA's own handle of a stream, as other libraries take it."""

    def upload(self, target: int, source: int, size: int, stream: Stream) -> None:
        """From pinned memory to the device's."""

    def download(self, target: int, source: int, size: int, stream: Stream) -> None:
        """From the device's memory to pinned memory."""

    def zero(self, target: int, size: int, stream: Stream) -> None: ...

    def copy_rows(
        self, target: int, source: int, *, rows: int, size: int, pitches: tuple[int, int], stream: Stream
    ) -> None:
        """``rows`` pieces of ``size`` bytes within the device, ``pitches`` apart: the target's and the source's."""

    def synchronize(self, stream: Stream) -> None: ...

    def begin_capture(self, stream: Stream) -> None:
        """What is put on the stream from here on is not done but written down."""

    def end_capture(self, stream: Stream) -> Graph:
        """What was written down, ready to be launched. Raises HostError if something of it cannot be captured."""

    def launch(self, graph: Graph, stream: Stream) -> None: ...

    def free_graph(self, graph: Graph) -> None: ...
