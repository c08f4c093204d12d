"""Describes this machine's CPU. Standard library only, because the runtime uses it at every load."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_AUXV = Path("/proc/self/auxv")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

_KNOWN = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip

_HWCAP, _HWCAP2 = 16, 26  # kinds of words in /proc/self/auxv
_ARM_BITS = {
    "asimd": (_HWCAP, 1), "asimdhp": (_HWCAP, 10), "asimddp": (_HWCAP, 20), "sve": (_HWCAP, 22),
    "i8mm": (_HWCAP2, 13), "bf16": (_HWCAP2, 14),
}  # fmt: skip


def host_arch() -> str:
    """ "x86_64", "aarch64", or what platform.machine() says."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def host_features(cpuinfo: str | None = None) -> frozenset[str]:
    """The CPU features that the Linux kernel reports, limited to those that targets use.

    Empty if there is no /proc/cpuinfo.
    """
    flags: set[str] = set()
    if cpuinfo is None and host_arch() == "aarch64":
        return _arm_features(_AUXV)
    for line in _read(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return frozenset(flags & set(_KNOWN))


def _arm_features(auxv: Path) -> frozenset[str]:
    """Features from the auxiliary vector; in an emulator, /proc/cpuinfo may describe the host."""
    try:
        words = memoryview(auxv.read_bytes()).cast("Q")
    except (OSError, TypeError):
        return frozenset()
    said = dict(zip(words[::2], words[1::2], strict=False))
    return frozenset(name for name, (word, bit) in _ARM_BITS.items() if said.get(word, 0) >> bit & 1)


def host_cpu_name(cpuinfo: str | None = None) -> str:
    for line in _read(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or "unknown"


def host_cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def host_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def host_cache_bytes(level: int) -> int | None:
    """Size of the first core's data or unified cache of that level; None if the kernel does not report it."""
    for index in sorted(_CACHES.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            if int((index / "level").read_text()) == level and kind != "Instruction":
                return int((index / "size").read_text().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return None


def _read(cpuinfo: str | None) -> str:
    if cpuinfo is not None:
        return cpuinfo
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
