"""Energy, from the counters of Intel's and AMD's packages (RAPL) and of NVIDIA's GPUs, where they can be read."""

from __future__ import annotations

import ctypes
from pathlib import Path

_RAPL = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"


class EnergyMeter:
    """Joules since its creation; None, and never 0, if no counter can be read."""

    def __init__(self, rapl: Path = _RAPL, *, gpu: bool = False) -> None:
        self._packages = _packages(rapl)
        self._gpu = gpu
        self._before = self._read()

    def joules(self) -> float | None:
        now = self._read()
        if now is None or self._before is None:
            return None
        used = 0.0
        for name, value in now.items():
            span = value - self._before.get(name, value)
            if span < 0:  # the counter wrapped
                span += self._packages.get(name, 0.0)
            used += span
        return used if used > 0 else None

    def _read(self) -> dict[str, float] | None:
        """Joules by counter. For work on a GPU its own counter must be among them."""
        found = {}
        for name in self._packages:
            try:
                found[name] = int((Path(name) / "energy_uj").read_text()) / 1e6
            except (OSError, ValueError):
                return None  # only root reads it on most systems; a partial sum would be wrong
        if self._gpu:
            joules = _gpu_joules()
            if joules is None:
                return None
            found["gpu"] = joules
        return found or None


def _packages(rapl: Path) -> dict[str, float]:
    """The packages' folders, and the joules at which each counter wraps."""
    found = {}
    for folder in sorted(rapl.glob("*-rapl:[0-9]*")):
        if folder.name.count(":") == 1:  # a package; its cores and memory have a second number
            try:
                found[str(folder)] = int((folder / "max_energy_range_uj").read_text()) / 1e6
            except (OSError, ValueError):
                found[str(folder)] = 0.0
    return found


def _gpu_joules() -> float | None:
    """Joules of the first GPU since the driver was loaded."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value / 1e3
    finally:
        nvml.nvmlShutdown()
