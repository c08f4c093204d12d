"""A double of ``cuda.bindings.driver``: memory that is the host's, streams that do nothing until they are waited for.

It is stricter than a device: an address must lie in an allocation that is alive, when a copy is asked for and when it
is done; what a stream was told is done at ``cuStreamSynchronize`` and not before, so that whoever reads too early,
frees too early or writes over a source too early gets a wrong answer. Whatever is not freed is counted.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Work = Callable[[], None]


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


OK = CUresult.CUDA_SUCCESS


class FakeCuda:
    """``gpus``: name and compute capability of each; ``memory``: bytes of each."""

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)

    def __init__(self, *gpus: tuple[str, tuple[int, int]], memory: int = 1 << 30) -> None:
        self.gpus, self.memory = gpus, memory
        self.device: dict[int, npt.NDArray[np.uint8]] = {}
        self.pinned: dict[int, npt.NDArray[np.uint8]] = {}
        self.streams: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.calls: list[str] = []
        self.most_pinned = 1 << 40
        self.captures = True  # False: what is put on a stream meanwhile cannot be captured
        self._next, self._context = 1, 0

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("cu"):
            self.calls.append(name)
        return value

    def count(self, name: str) -> int:
        return self.calls.count(name)

    @property
    def held(self) -> dict[str, int]:
        """What is not freed."""
        kinds = {"device": self.device, "pinned": self.pinned, "streams": self.streams, "graphs": self.graphs}
        return {kind: len(what) for kind, what in kinds.items() if what}

    def bytes_at(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """Of an allocation that is alive and long enough."""
        for memory in (self.device, self.pinned):
            for start, data in memory.items():
                if start <= address and address + size <= start + len(data):
                    return data[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are in no allocation that is alive")

    def put(self, stream: int, work: Work) -> None:
        """On a stream, or into what is being captured of it."""
        assert self._context, "no context is current"
        self.capturing.get(stream, self.streams[stream]).append(work)

    def _number(self) -> int:
        self._next += 1
        return self._next

    # What a device is.

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (OK if self.gpus else CUresult.CUDA_ERROR_NO_DEVICE,)

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return OK, len(self.gpus)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return OK, ordinal

    def cuDeviceGetName(self, length: int, dev: int) -> tuple[Any, ...]:
        return OK, self.gpus[dev][0].encode().ljust(length, b"\0")

    def cuDeviceTotalMem(self, dev: int) -> tuple[Any, ...]:
        return OK, self.memory

    def cuDeviceGetAttribute(self, attrib: int, dev: int) -> tuple[Any, ...]:
        return OK, self.gpus[dev][1][attrib - 75]

    def cuDevicePrimaryCtxRetain(self, dev: int) -> tuple[Any, ...]:
        return OK, 1000 + dev

    def cuCtxSetCurrent(self, ctx: int) -> tuple[Any, ...]:
        self._context = ctx
        return (OK,)

    # Memory.

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory - sum(map(len, self.device.values())), self.memory

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        if bytesize > self.cuMemGetInfo()[1]:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        data = np.full(bytesize, 0xA5, dtype=np.uint8)
        self.device[data.ctypes.data] = data
        return OK, data.ctypes.data

    def cuMemFree(self, dptr: int) -> tuple[Any, ...]:
        assert self.device.pop(dptr, None) is not None, "freed twice, or never allocated"
        return (OK,)

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> tuple[Any, ...]:
        if bytesize > self.most_pinned:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        data = np.full(bytesize, 0x5A, dtype=np.uint8)
        self.pinned[data.ctypes.data] = data
        return OK, data.ctypes.data

    def cuMemFreeHost(self, p: int) -> tuple[Any, ...]:
        assert self.pinned.pop(p, None) is not None, "freed twice, or never allocated"
        return (OK,)

    def _copy(self, target: int, source: int, size: int, stream: int) -> tuple[Any, ...]:
        def copy() -> None:
            self.bytes_at(target, size)[:] = self.bytes_at(source, size)

        self.bytes_at(target, size), self.bytes_at(source, size)
        self.put(stream, copy)
        return (OK,)

    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: int) -> tuple[Any, ...]:
        return self._copy(dstDevice, srcHost, ByteCount, hStream)

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: int) -> tuple[Any, ...]:
        return self._copy(dstHost, srcDevice, ByteCount, hStream)

    def cuMemsetD8Async(self, dstDevice: int, uc: int, N: int, hStream: int) -> tuple[Any, ...]:
        self.bytes_at(dstDevice, N)
        self.put(hStream, lambda: self.bytes_at(dstDevice, N).fill(uc))
        return (OK,)

    def CUDA_MEMCPY2D(self) -> Any:
        return SimpleNamespace()

    def cuMemcpy2DAsync(self, pCopy: Any, hStream: int) -> tuple[Any, ...]:
        assert pCopy.srcMemoryType == pCopy.dstMemoryType == self.CUmemorytype.CU_MEMORYTYPE_DEVICE
        assert pCopy.WidthInBytes <= min(pCopy.srcPitch, pCopy.dstPitch)
        for row in range(pCopy.Height):
            target, source = pCopy.dstDevice + row * pCopy.dstPitch, pCopy.srcDevice + row * pCopy.srcPitch
            self._copy(target, source, pCopy.WidthInBytes, hStream)
        return (OK,)

    # Streams and graphs.

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:
        stream = self._number()
        self.streams[stream] = []
        return OK, stream

    def cuStreamDestroy(self, hStream: int) -> tuple[Any, ...]:
        assert not self.streams.pop(hStream), "a stream was given back with work on it"
        return (OK,)

    def cuStreamSynchronize(self, hStream: int) -> tuple[Any, ...]:
        assert hStream not in self.capturing, "a stream that is captured cannot be waited for"
        work, self.streams[hStream] = self.streams[hStream], []
        for each in work:
            each()
        return (OK,)

    def cuStreamBeginCapture(self, hStream: int, mode: int) -> tuple[Any, ...]:
        self.capturing[hStream] = []
        return (OK,)

    def cuStreamEndCapture(self, hStream: int) -> tuple[Any, ...]:
        work = self.capturing.pop(hStream)
        if not self.captures:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        graph = self._number()
        self.graphs[graph] = work
        return OK, graph

    def cuGraphInstantiate(self, hGraph: int, flags: int) -> tuple[Any, ...]:
        made = self._number()
        self.graphs[made] = self.graphs[hGraph]
        return OK, made

    def cuGraphDestroy(self, hGraph: int) -> tuple[Any, ...]:
        del self.graphs[hGraph]
        return (OK,)

    def cuGraphLaunch(self, hGraphExec: int, hStream: int) -> tuple[Any, ...]:
        for work in self.graphs[hGraphExec]:
            self.put(hStream, work)
        return (OK,)

    def cuGraphExecDestroy(self, hGraphExec: int) -> tuple[Any, ...]:
        del self.graphs[hGraphExec]
        return (OK,)
