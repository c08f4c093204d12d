"""Memory of a device and pinned memory, owned: freed once, by ``close`` or when nobody holds it any more."""

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
        self.close.atexit = False  # the process takes it along


class PinnedBuffer:
    """``size`` bytes of pinned memory. Arrays over it keep it: it is freed when the last of them is gone."""

    def __init__(self, device: Device, size: int) -> None:
        """Raises DeviceMemoryError."""
        self.size, self.address = size, device.allocate_pinned(size)
        self.__array_interface__ = {"version": 3, "data": (self.address, False), "shape": (size,), "typestr": "|u1"}
        weakref.finalize(self, device.free_pinned, self.address).atexit = False

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The first bytes of it as an array."""
        size = int(np.prod(shape)) * dtype.itemsize
        return np.asarray(self)[:size].view(dtype).reshape(shape)


class Staging:
    """Where one tensor lies on both sides. It grows as needed, and then lies elsewhere."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.host: PinnedBuffer | None = None
        self.device: DeviceBuffer | None = None

    def require(self, size: int) -> tuple[PinnedBuffer, DeviceBuffer]:
        """Both buffers, ``size`` bytes at least; twice as large as needed where they were too small once."""
        if self.host is None or self.device is None or self.host.size < size:
            wanted = size if self.host is None else 2 * size
            self.host = self.device = None
            self.host, self.device = PinnedBuffer(self._device, wanted), DeviceBuffer(self._device, wanted)
        return self.host, self.device
