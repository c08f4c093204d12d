"""A CUDA device through NVIDIA's own bindings of the driver (package cuda-bindings). Not yet run on a GPU.

The device's primary context is used, which is the one that TensorRT and ONNX Runtime use; it is made current in
whatever thread makes a call. Every name of the bindings that stands here is held against them by a test.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

from edgecompress.errors import HostError
from edgecompress.runtime.cuda.device import DeviceMemoryError, Graph, Stream
from edgecompress.types.gpu import Gpu

LIBRARY = "libcuda.so.1"
BINDINGS = "cuda.bindings.driver"
_NAME_BYTES = 96


def open_driver(load: Callable[[str], object] = ctypes.CDLL) -> Any:
    """NVIDIA's bindings, after ``cuInit``. Raises HostError naming what is missing.

    The library is looked for first: without it some calls of the bindings hang.
    """
    try:
        load(LIBRARY)
    except OSError:
        raise HostError(
            f"an NVIDIA GPU is needed, and its driver's {LIBRARY} is not on this machine",
            hint="Install NVIDIA's driver, or export the student for this machine.",
        ) from None
    try:
        cuda = importlib.import_module(BINDINGS)
    except ImportError as error:
        raise HostError(
            f"the package cuda-bindings is not installed ({error})", hint="pip install 'edgecompress[device-gpu]'"
        ) from None
    (code,) = cuda.cuInit(0)
    if code != cuda.CUresult.CUDA_SUCCESS:
        raise HostError(
            f"{LIBRARY} finds no GPU that it can use: {code.name}",
            hint="`nvidia-smi` shows what the driver sees; CUDA_VISIBLE_DEVICES can hide a GPU.",
        )
    return cuda


def list_gpus(cuda: Any) -> list[Gpu]:
    """The GPUs that this process may use, in CUDA's order."""
    attributes = cuda.CUdevice_attribute
    major = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    minor = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    found = []
    for index in range(_value(cuda, cuda.cuDeviceGetCount())):
        device = _value(cuda, cuda.cuDeviceGet(index))
        name = _value(cuda, cuda.cuDeviceGetName(_NAME_BYTES, device))
        found.append(
            Gpu(
                name=bytes(name).split(b"\0")[0].decode(errors="replace"),
                memory_bytes=int(_value(cuda, cuda.cuDeviceTotalMem(device))),
                compute_capability=(
                    int(_value(cuda, cuda.cuDeviceGetAttribute(major, device))),
                    int(_value(cuda, cuda.cuDeviceGetAttribute(minor, device))),
                ),
            )
        )
    return found


def _value(cuda: Any, result: tuple[Any, ...]) -> Any:
    """What a call gives, behind its code. Raises DeviceMemoryError, HostError."""
    code, *values = result
    if code == cuda.CUresult.CUDA_SUCCESS:
        return values[0] if values else None
    if code == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError(
            "the GPU is out of memory", hint="Close what else uses it, or take smaller batches or a shorter context."
        )
    raise HostError(
        f"the CUDA driver fails: {code.name}",
        hint="`nvidia-smi` shows the GPU's state; an error once made stays until the process ends.",
    )


class CudaDevice:
    """One GPU of :func:`list_gpus`, as a :class:`~edgecompress.runtime.cuda.device.Device`."""

    def __init__(self, cuda: Any, index: int) -> None:
        """Takes the primary context and keeps it: other libraries in the process live in it too. Raises HostError."""
        self._cuda = cuda
        self.index = index
        self._context = _value(cuda, cuda.cuDevicePrimaryCtxRetain(_value(cuda, cuda.cuDeviceGet(index))))

    def _enter(self) -> Any:
        _value(self._cuda, self._cuda.cuCtxSetCurrent(self._context))
        return self._cuda

    def free_bytes(self) -> int:
        cuda = self._enter()
        return int(_value(cuda, cuda.cuMemGetInfo()))

    def allocate(self, size: int) -> int:
        cuda = self._enter()
        return int(_value(cuda, cuda.cuMemAlloc(max(size, 1))))

    def free(self, address: int) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuMemFree(address))

    def allocate_pinned(self, size: int) -> int:
        cuda = self._enter()
        return int(_value(cuda, cuda.cuMemHostAlloc(max(size, 1), 0)))

    def free_pinned(self, address: int) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuMemFreeHost(address))

    def make_stream(self) -> Stream:
        cuda = self._enter()
        return _value(cuda, cuda.cuStreamCreate(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def free_stream(self, stream: Stream) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuStreamDestroy(stream))

    def stream_handle(self, stream: Stream) -> int:
        return int(stream)

    def upload(self, target: int, source: int, size: int, stream: Stream) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuMemcpyHtoDAsync(target, source, size, stream))

    def download(self, target: int, source: int, size: int, stream: Stream) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuMemcpyDtoHAsync(target, source, size, stream))

    def zero(self, target: int, size: int, stream: Stream) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuMemsetD8Async(target, 0, size, stream))

    def copy_rows(
        self, target: int, source: int, *, rows: int, size: int, pitches: tuple[int, int], stream: Stream
    ) -> None:
        cuda = self._enter()
        copy = cuda.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstDevice, copy.srcDevice = target, source
        copy.dstPitch, copy.srcPitch = pitches
        copy.WidthInBytes, copy.Height = size, rows
        _value(cuda, cuda.cuMemcpy2DAsync(copy, stream))

    def synchronize(self, stream: Stream) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuStreamSynchronize(stream))

    def begin_capture(self, stream: Stream) -> None:
        cuda = self._enter()
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # other threads go on as they were
        _value(cuda, cuda.cuStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Stream) -> Graph:
        cuda = self._enter()
        made = _value(cuda, cuda.cuStreamEndCapture(stream))
        try:
            return _value(cuda, cuda.cuGraphInstantiate(made, 0))
        finally:
            _value(cuda, cuda.cuGraphDestroy(made))

    def launch(self, graph: Graph, stream: Stream) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuGraphLaunch(graph, stream))

    def free_graph(self, graph: Graph) -> None:
        cuda = self._enter()
        _value(cuda, cuda.cuGraphExecDestroy(graph))
