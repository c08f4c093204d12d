"""Checks for free memory before allocating it, so that a shortage is an error message and not a killed process.

In a container the control group's limit counts, not the machine's memory. Both are read and the smaller one is used.
Swap is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgecompress.errors import HostError

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")

_Version = tuple[tuple[str, ...], str, str]
# Files with the limits, the file with the usage, and the memory.stat line that gives the reclaimable page cache.
_VERSION_2: _Version = (("memory.max", "memory.high"), "memory.current", "inactive_file")
_VERSION_1: _Version = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def available_bytes() -> int | None:
    """Bytes that this process can still allocate without swapping or being killed; None if unknown."""
    machine = _line_of(_MEMINFO, "MemAvailable:")
    known = [] if machine is None else [machine * 1024]
    for folder, version in _own_groups():
        left = _left_in(folder, *version)
        if left is not None:
            known.append(left)
    return min(known, default=None)


def check_available(wanted_bytes: int, what: str, hint: str) -> None:
    """Raises HostError, with both numbers, if fewer than ``wanted_bytes`` are available. ``what`` names the user."""
    available = available_bytes()
    if available is not None and wanted_bytes > available:
        raise HostError(f"{what} takes {wanted_bytes:_} bytes of memory, and {available:_} are available", hint=hint)


def _own_groups() -> Iterator[tuple[Path, _Version]]:
    """The folders of this process's control groups, up to the root; each can have a limit."""
    for line in _text(_OWN_GROUPS).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0" and not controllers:
            roots, version = [_GROUPS, _GROUPS / "unified"], _VERSION_2
        elif "memory" in controllers.split(","):
            roots, version = [_GROUPS / "memory"], _VERSION_1
        else:
            continue
        path = PurePosixPath(name.lstrip("/"))
        if ".." in path.parts:  # a group outside the container's view: only the root is visible
            path = PurePosixPath()
        for root in roots:
            for part in (path, *path.parents):
                # A path that does not exist is the host's: a container sees its own group as the root.
                yield root / part, version


def _left_in(folder: Path, limits: tuple[str, ...], used: str, reclaimable: str) -> int | None:
    """Bytes left below a group's lowest limit, counting idle page cache as free; None without a limit."""
    found = [int(text) for name in limits if (text := _text(folder / name).strip()).isdigit()]  # "max": no limit
    current = _text(folder / used).strip()
    if not found or not current.isdigit():
        return None
    cache = _line_of(folder / "memory.stat", reclaimable) or 0
    return max(0, min(found) - int(current) + cache)


def _line_of(path: Path, key: str) -> int | None:
    """The number after ``key`` in a file of names and numbers."""
    for line in _text(path).splitlines():
        name, *numbers = line.split()[:2] or [""]
        if name == key and numbers and numbers[0].isdigit():
            return int(numbers[0])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
