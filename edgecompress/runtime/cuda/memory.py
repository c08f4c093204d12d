"""Owned device memory and pinned memory: freed once, by ``close`` or when the last reference is gone."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.runtime.cuda.device import Device


class DeviceBuffer:
    """``size`` bytes on the device at ``address``."""

    def __init__(self, device: Device, size: int) -> None:
        """Raises DeviceMemoryError."""
        self.size, self.address = size, device.allocate(size)
        self.close = weakref.finalize(self, device.free, self.address)
        self.close.atexit = False  # freed with the process


class PinnedBuffer:
    """``size`` bytes of pinned memory. Arrays over it keep it alive; it is freed with the last one."""

    def __init__(self, device: Device, size: int) -> None:
        """Raises DeviceMemoryError."""
        self.size, self.address = size, device.allocate_pinned(size)
        self.__array_interface__ = {"version": 3, "data": (self.address, False), "shape": (size,), "typestr": "|u1"}
        weakref.finalize(self, device.free_pinned, self.address).atexit = False

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array over the first bytes."""
        size = int(np.prod(shape)) * dtype.itemsize
        return np.asarray(self)[:size].view(dtype).reshape(shape)


class Staging:
    """One tensor's pinned buffer and device buffer. They are reallocated when they need to grow."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.host: PinnedBuffer | None = None
        self.device: DeviceBuffer | None = None

    def require(self, size: int) -> tuple[PinnedBuffer, DeviceBuffer]:
        """Return both buffers with at least ``size`` bytes; a buffer that grows gets twice the size it needs."""
        if self.host is None or self.device is None or self.host.size < size:
            wanted = size if self.host is None else 2 * size
            self.host = self.device = None
            self.host, self.device = PinnedBuffer(self._device, wanted), DeviceBuffer(self._device, wanted)
        return self.host, self.device
