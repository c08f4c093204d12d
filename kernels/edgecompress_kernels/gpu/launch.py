"""Launches precompiled kernels through cuda-core, without Triton or torch.

Launches are asynchronous, as usual in CUDA: the driver copies the parameters, but the memory at their addresses must
stay alive until the stream has run the kernel. Kernels live as long as their ``Launcher``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol

from edgecompress_kernels.gpu.record import KernelRecord, read_kernel

LIBRARY = "libcuda.so.1"
PLAIN_SHARED_BYTES = 48 * 1024  # limit without a request for more
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
MOST_MAP_STRIDE = 2**40  # bytes
_PROMOTE_128_BYTES = 2  # CUtensorMapL2promotion


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """An array [heads, tokens, D] that a kernel reads through the copy engine: the value of a parameter "map"."""

    address: Any  # as for other arrays
    heads: int
    tokens: int
    width: int  # D; contiguous
    head_stride: int  # in elements
    token_stride: int


@dataclass(frozen=True)
class TensorMap:
    """The driver's parameters of a tensor map: outermost axis first, ``strides`` in bytes, without the last axis."""

    address: int
    shape: tuple[int, int, int]
    strides: tuple[int, int]
    box: tuple[int, int, int]
    swizzle: int
    element_bytes: int


Argument = ctypes.c_uint64 | ctypes.c_int64 | ctypes.c_int32 | ctypes.c_float | TensorMap


class LaunchError(Exception):
    """A kernel cannot be launched; the message gives the reason and what to do."""


class Driver(Protocol):
    """The CUDA functions that a launcher needs, for one device."""

    capability: tuple[int, int]
    most_shared_bytes: int  # limit per block

    def load(self, cubin: bytes, name: str, symbol: str) -> Any:
        """Load a kernel. Its code stays loaded as long as the returned object."""

    def allow_shared(self, kernel: Any, shared_bytes: int) -> None:
        """Allow a kernel more than 48 KiB of shared memory."""

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        stream: Any,
    ) -> None:
        """Launch a kernel on ``stream``; None is the device's default stream."""

    def synchronize(self) -> None:
        """Wait for all launches."""


def require_driver(load: Callable[[str], object] = ctypes.CDLL) -> None:
    """Check that the CUDA driver exists before any CUDA call, since some calls hang without it.

    Raises LaunchError naming the missing library.
    """
    try:
        load(LIBRARY)
    except OSError as error:
        raise LaunchError(
            f"{LIBRARY} cannot be loaded, so CUDA kernels cannot run on this machine ({error}). It is part of NVIDIA's "
            "driver: install the driver, or use a bundle for a CPU target"
        ) from None


class CudaDriver:
    """One CUDA device through cuda-core."""

    def __init__(self, ordinal: int = 0) -> None:
        """Raises LaunchError if the driver, cuda-core or the device is missing."""
        require_driver()
        try:
            from cuda.bindings import driver
            from cuda.core import Device, LaunchConfig, ObjectCode, launch
        except ImportError as error:
            raise LaunchError(f"{error.name} is not installed: pip install 'edgecompress[gpu]'") from error
        self._driver, self._object_code, self._config, self._launch = driver, ObjectCode, LaunchConfig, launch
        self._ordinal = ordinal
        try:
            self._device = Device(ordinal)
            self._device.set_current()
            major, minor = self._device.compute_capability
            self.most_shared_bytes = int(self._device.properties.max_shared_memory_per_block_optin)
        except Exception as error:  # cuda-core's errors, which differ between its versions
            raise LaunchError(f"CUDA device {ordinal} cannot be used: {error}") from error
        self.capability = (int(major), int(minor))

    def load(self, cubin: bytes, name: str, symbol: str) -> Any:
        return self._object_code.from_cubin(cubin, name=name).get_kernel(symbol)  # the kernel keeps the code loaded

    def allow_shared(self, kernel: Any, shared_bytes: int) -> None:
        attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = self._driver.CUdevice(self._ordinal)
        (result,) = self._driver.cuKernelSetAttribute(attribute, shared_bytes, kernel.handle, device)
        if result != self._driver.CUresult.CUDA_SUCCESS:
            raise LaunchError(f"the device refuses {shared_bytes} bytes of shared memory: {result.name}")

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        stream: Any,
    ) -> None:
        self._device.set_current()  # in this thread, which can differ from the one that loaded
        config = self._config(grid=grid, block=(threads, 1, 1), shmem_size=shared_bytes)
        own = [_mapped(each) if isinstance(each, TensorMap) else each for each in arguments]
        self._launch(self._device.default_stream if stream is None else stream, config, kernel, *own)

    def synchronize(self) -> None:
        self._device.sync()


def _mapped(of: TensorMap) -> Any:
    """Return cuda-core's tensor map, encoded by the driver.

    Raises LaunchError if the driver rejects it, or if this cuda-core has no tensor maps.
    """
    try:
        from cuda.core import TensorMapDescriptorOptions
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:
        raise LaunchError("this cuda-core does not support tensor maps: pip install 'edgecompress[gpu]'") from error

    class Array:
        __cuda_array_interface__: ClassVar[dict[str, Any]] = {
            "version": 3,
            "data": (of.address, False),
            "shape": of.shape,
            "strides": (*of.strides, of.element_bytes),
            "typestr": f"<u{of.element_bytes}",  # copied without conversion, so the type does not matter
        }

    options = TensorMapDescriptorOptions(
        box_dim=of.box,
        swizzle=type(TensorMapDescriptorOptions.swizzle)(of.swizzle),
        l2_promotion=type(TensorMapDescriptorOptions.l2_promotion)(_PROMOTE_128_BYTES),
    )
    try:
        return StridedMemoryView.from_any_interface(Array(), stream_ptr=-1).as_tensor_map(options=options)
    except Exception as error:  # cuda-core's errors, which differ between its versions
        raise LaunchError(
            f"the driver cannot make a tensor map of {of.shape} by {of.strides} bytes: {error}"
        ) from error


@dataclass(frozen=True)
class _Loaded:
    record: KernelRecord
    kernel: Any


class Launcher:
    """The kernels in a folder that ``aot`` wrote for this device's capability. A context manager."""

    def __init__(self, folder: Path, driver: Driver) -> None:
        self._folder, self._driver = folder, driver
        self._loaded: dict[str, _Loaded] | None = {}

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the device and unload the kernels. A second call does nothing."""
        if self._loaded is not None:
            try:
                self._driver.synchronize()  # running code must not be unloaded
            finally:
                self._loaded = None

    def record(self, name: str) -> KernelRecord:
        """Return a kernel's record, loading the kernel if needed."""
        return self._load(name).record

    def launch(self, name: str, values: Mapping[str, Any], stream: Any = None) -> None:
        """Launch kernel ``name``: ``values`` are its parameters and the sizes of its grid, by name.

        An address is an integer, or an array with ``__cuda_array_interface__`` or ``data_ptr``. A grid without blocks
        launches nothing.

        Raises LaunchError before the launch for values that are missing, unknown, out of range or misaligned for this
        kernel, and for kernels that this device cannot run.
        """
        loaded = self._load(name)
        record = loaded.record
        known = {*record.signature, *record.sizes}
        if set(values) != known:
            missing, unknown = known - set(values), set(values) - known
            parts = [
                f"{what} {', '.join(sorted(names))}"
                for what, names in (("lacks", missing), ("has unknown", unknown))
                if names
            ]
            raise LaunchError(f"the call of '{name}' {' and '.join(parts)}")
        arguments = pack(record, values)
        grid = grid_of(record, values)
        if 0 in grid:
            return
        self._driver.launch(loaded.kernel, grid, record.threads, record.shared_bytes, arguments, stream)

    def _load(self, name: str) -> _Loaded:
        if self._loaded is None:
            raise LaunchError(f"'{name}' cannot be launched: its launcher was closed")
        if name not in self._loaded:
            record, cubin = read_kernel(self._folder / f"{name}.json")
            self._check_device(record)
            kernel = self._driver.load(cubin, record.name, record.symbol)
            if record.shared_bytes > PLAIN_SHARED_BYTES:
                self._driver.allow_shared(kernel, record.shared_bytes)
            self._loaded[name] = _Loaded(record, kernel)
        return self._loaded[name]

    def _check_device(self, record: KernelRecord) -> None:
        major, minor = (int(part) for part in record.capability.split("."))
        here = self._driver.capability
        runs = here == (major, minor) if record.exact_capability else here[0] == major and here[1] >= minor
        if not runs:
            raise LaunchError(
                f"'{record.name}' is for compute capability {record.capability}, but this device has "
                f"{here[0]}.{here[1]}: "
                f"compile it with python -m edgecompress_kernels.gpu.aot OUT --capability {here[0]}.{here[1]}"
            )
        if record.shared_bytes > self._driver.most_shared_bytes:
            raise LaunchError(
                f"'{record.name}' needs {record.shared_bytes} bytes of shared memory, but this device's limit is "
                f"{self._driver.most_shared_bytes} per block: compile it for this device's capability"
            )


def address_of(value: Any) -> int:
    """Return an integer unchanged, or the device address of an array's data."""
    if isinstance(value, int):
        return value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return int(interface["data"][0])
    if hasattr(value, "data_ptr"):
        return int(value.data_ptr())
    raise LaunchError(f"a {type(value).__name__} has no device address: pass an integer or a device array")


def pack(record: KernelRecord, values: Mapping[str, Any]) -> tuple[Argument, ...]:
    """Return a call's parameters in the kernel's order and types, followed by the hidden scratch pointers.

    Raises LaunchError for a value that the kernel was not compiled for.
    """
    arguments: list[Argument] = []
    for name, kind in record.signature.items():
        value = values[name]
        if kind == "map":
            arguments.extend(_pack_map(record, name, value))
            continue
        if kind.startswith("*"):
            value = address_of(value)
            if not 0 < value < 2**64:
                raise LaunchError(f"{name} of '{record.name}' is not an address: {value:#x}")
            arguments.append(ctypes.c_uint64(value))
        elif kind == "fp32":
            if not math.isfinite(value):
                raise LaunchError(f"{name} of '{record.name}' is {value}; it must be finite")
            arguments.append(ctypes.c_float(value))
        elif kind == "i32":
            if isinstance(value, float) or not 0 <= int(value) < 2**31:
                raise LaunchError(f"{name} of '{record.name}' is {value}; it must be an integer from 0 to 2^31 - 1")
            value = int(value)
            arguments.append(ctypes.c_int32(value))
        else:
            raise LaunchError(f"{name} of '{record.name}' is of type {kind}, which this version cannot pass")
        if name in record.aligned and value % 16:
            what = "address" if kind.startswith("*") else "value"
            raise LaunchError(f"{name} of '{record.name}': its {what} {value} is not a multiple of 16")
        least, most = record.ranges.get(name, (value, value))
        if not least <= value <= most:
            raise LaunchError(f"{name} of '{record.name}' is {value}; this kernel is for {least:g} to {most:g}")
    return (*arguments, *(ctypes.c_uint64(0) for _ in range(record.scratch_pointers)))


def _pack_map(record: KernelRecord, name: str, value: Any) -> list[Argument]:
    """Return a map, its shape and its strides in elements, as Triton passes them.

    Raises LaunchError for an array that the copy engine cannot read.
    """
    if not isinstance(value, Tokens):
        raise LaunchError(f"{name} of '{record.name}' is read through the copy engine: pass it as Tokens")
    of = record.maps[name]
    address, size = address_of(value.address), of["element_bytes"]
    shape = (value.heads, value.tokens, value.width)
    strides = (value.head_stride * size, value.token_stride * size)
    if address <= 0 or address % 16:
        raise LaunchError(f"{name} of '{record.name}': its address {address:#x} is not a multiple of 16")
    if any(stride % 16 or not 0 < stride < MOST_MAP_STRIDE for stride in strides):
        raise LaunchError(f"{name} of '{record.name}': its strides {strides} in bytes must be multiples of 16 above 0")
    if any(not 0 < n < 2**31 for n in shape):
        raise LaunchError(f"{name} of '{record.name}' has the shape {shape}; each must be from 1 to 2^31 - 1")
    box = tuple(of["box"])
    return [
        TensorMap(address, shape, strides, (box[0], box[1], box[2]), of["swizzle"], size),
        *(ctypes.c_int32(n) for n in shape),
        *(ctypes.c_int64(n) for n in (value.head_stride, value.token_stride, 1)),
    ]


def grid_of(record: KernelRecord, values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the blocks along x, y and z by the record's rule.

    Raises LaunchError for more blocks than CUDA supports.
    """
    axes = [math.prod(-(-math.prod(int(values[n]) for n in f["of"]) // f["per"]) for f in axis) for axis in record.grid]
    x, y, z = (*axes, 1, 1)[:3]
    for axis, blocks, most in zip("xyz", (x, y, z), MOST_BLOCKS, strict=True):
        if not 0 <= blocks <= most:
            raise LaunchError(f"'{record.name}' would be {blocks} blocks along {axis}; CUDA's limit is {most}")
    return x, y, z
