"""Memory is asked about before it is taken, so that the answer is a sentence and not a killed process."""

from __future__ import annotations

from pathlib import Path

from edgecompress.errors import HostError

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """What the kernel says a new process could take without swapping; None where it does not say."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def check_available(wanted_bytes: int, what: str, way_out: str) -> None:
    """Raises HostError, with both numbers, if ``wanted_bytes`` are more than there are."""
    available = available_bytes()
    if available is not None and wanted_bytes > available:
        raise HostError(
            f"{what} takes {wanted_bytes:_} bytes of memory, and {available:_} are available", way_out=way_out
        )
