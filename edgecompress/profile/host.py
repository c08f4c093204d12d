"""The host of a measurement, and how much its own times vary."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np

from edgecompress.backends import backends
from edgecompress.formats.cpu import host_arch, host_cores, host_cpu_name, host_features, host_memory_bytes
from edgecompress.formats.gpus import detect_gpus
from edgecompress.formats.packages import DEVELOPMENT_EXTRAS, DISTRIBUTION, installed_version, requirements
from edgecompress.types.profile import Host, Noise

_CPUS = Path("/sys/devices/system/cpu")
_GROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_POWER_MODE = Path("/etc/nvpmodel.conf"), Path("/var/lib/nvpmodel/status")
_LOOP = bytes(1 << 16)  # hashed: work for one core, without memory or Python
_LOOPS = 40
_NOISY_SPREAD, _NOISY_DRIFT = 0.10, 1.10


def describe_host() -> Host:
    """This machine now. None: the system does not report it."""
    return Host(
        cpu=host_cpu_name(),
        arch=host_arch(),
        isa=tuple(sorted(host_features())),
        cores=host_cores(),
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        governor=_text(_CPUS / "cpu0/cpufreq/scaling_governor"),
        clock_mhz=_clocks(),
        load_average_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        memory_bytes=host_memory_bytes(),
        cpu_limit=_cpu_limit(),
        virtual_machine="hypervisor" in (_text(_CPUINFO) or ""),
        power_mode=_power_mode(),
        gpus=tuple(gpu.name for gpu in detect_gpus()),
        versions=_versions(),
    )


class Calibration:
    """A reference loop; :meth:`take` times it before, between and after the measurements."""

    def __init__(self) -> None:
        self._seconds: list[list[float]] = []

    def take(self) -> None:
        hashlib.sha256(_LOOP).digest()
        seconds = []
        for _ in range(_LOOPS):
            started = time.perf_counter()
            hashlib.sha256(_LOOP).digest()
            seconds.append(time.perf_counter() - started)
        self._seconds.append(seconds)

    def noise(self) -> Noise:
        every = np.array(self._seconds).ravel()
        medians = np.array([np.median(seconds) for seconds in self._seconds])
        low, middle, high = np.percentile(every, (10, 50, 90))
        spread, apart = float((high - low) / middle), float(medians.max() / medians.min())
        return Noise(
            loop_ms=round(float(middle) * 1e3, 4),
            spread=round(spread, 4),
            slowest_over_fastest=round(apart, 4),
            noisy=spread > _NOISY_SPREAD or apart > _NOISY_DRIFT,
        )


def describe_noise(noise: Noise) -> str:
    """A sentence for reports."""
    state = "noisy" if noise.noisy else "quiet"
    return (
        f"{state}: a reference loop varied by {noise.spread:.1%}, its median over the run by "
        f"{noise.slowest_over_fastest - 1:.1%}"
    )


def resolution(noise: Noise) -> str:
    """The smallest difference that two profiles of this host can show."""
    return (
        f"a difference of less than {noise.slowest_over_fastest - 1:.0%} between two profiles may come from the host "
        "alone; `edgecompress compare` shows smaller ones"
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _clocks() -> tuple[float, ...]:
    found = [_text(path) for path in sorted(_CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    if found:
        return tuple(int(text) / 1e3 for text in found if text and text.isdigit())
    lines = (_text(_CPUINFO) or "").splitlines()
    return tuple(float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))


def _cpu_limit() -> float | None:
    quota, _, period = (_text(_GROUP / "cpu.max") or "").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _power_mode() -> str | None:
    """The number of nvpmodel's mode, on a Jetson."""
    conf, status = _POWER_MODE
    return _text(status) if conf.exists() else None


def _versions() -> dict[str, str]:
    """Installed versions of edgecompress, its requirements and the backends' packages."""
    try:
        required = [each.name for each in requirements() if each.extra not in DEVELOPMENT_EXTRAS]
    except PackageNotFoundError:  # runs from source
        required = []
    run_on = [name for each in backends().values() if each.plug_in.has("host") for name in each.host.PACKAGES]
    names = dict.fromkeys([DISTRIBUTION, *required, *run_on])
    return {name: version for name in names if (version := installed_version(name)) is not None}
