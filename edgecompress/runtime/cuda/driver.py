"""A CUDA device, through NVIDIA's driver bindings (package cuda-bindings). Not yet run on a GPU.

It uses the device's primary context, as TensorRT and ONNX Runtime do, and makes it current in the calling thread. A
test checks every name that this module uses against the bindings.
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
    """Return NVIDIA's bindings after ``cuInit``. Raises HostError naming what is missing.

    The driver library is loaded first: without it some calls of the bindings hang.
    """
    try:
        load(LIBRARY)
    except OSError:
        raise HostError(
            f"the NVIDIA driver's {LIBRARY} is not on this machine",
            hint="Install the NVIDIA driver, or export the student for this machine.",
        ) from None
    try:
        cuda = importlib.import_module(BINDINGS)
    except ImportError as error:
        raise HostError(
            f"the package cuda-bindings is not installed ({error})", hint="pip install 'edgecompress[gpu]'"
        ) from None
    (code,) = cuda.cuInit(0)
    if code != cuda.CUresult.CUDA_SUCCESS:
        raise HostError(
            f"{LIBRARY} finds no usable GPU: {code.name}",
            hint="Run `nvidia-smi` to list GPUs, and check that CUDA_VISIBLE_DEVICES does not hide one.",
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
    """Return a call's value without its status code. Raises DeviceMemoryError, HostError."""
    code, *values = result
    if code == cuda.CUresult.CUDA_SUCCESS:
        return values[0] if values else None
    if code == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError(
            "the GPU is out of memory", hint="Stop other programs on it, or use smaller batches or a shorter context."
        )
    raise HostError(
        f"the CUDA driver failed: {code.name}",
        hint="Restart the process, which clears the error; `nvidia-smi` shows the GPU's state.",
    )


class CudaDevice:
    """One GPU of :func:`list_gpus`, as a :class:`~edgecompress.runtime.cuda.device.Device`."""

    def __init__(self, cuda: Any, index: int) -> None:
        """Retain the primary context for good: other libraries in the process use it too. Raises HostError."""
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
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # does not affect other threads
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
