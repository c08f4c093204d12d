"""Weights in huge pages: a decode step reads every weight once, and 4 KiB pages cost it about a tenth of its time.

Linux gives memory in huge pages only to those who ask where transparent_hugepage is "madvise", its usual setting, and
ONNX Runtime does not ask for the weights it packs. So the large anonymous regions that a session brought are asked for
afterwards, by MADV_COLLAPSE (Linux 6.1 and later), which copies them into huge pages at once. Where the kernel cannot
or will not, nothing changes but the speed.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COLLAPSE = 25  # MADV_COLLAPSE
_HUGE = 2 << 20
_LEAST_BYTES = 4 << 20  # of a region that is worth asking for


def anonymous_regions() -> dict[int, int]:
    """Start -> end of this process's writable private memory that is no file's; empty where there is no /proc."""
    regions: dict[int, int] = {}
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return regions
    for line in lines:
        fields = line.split()
        if fields[1] == "rw-p" and fields[4] == "0" and (len(fields) == 5 or fields[5] == "[heap]"):
            start, end = (int(x, 16) for x in fields[0].split("-"))
            regions[start] = end
    return regions


def collapse_new(before: dict[int, int]) -> int:
    """Put what was allocated since ``before`` into huge pages; return the bytes that the kernel agreed to."""
    try:
        if "[never]" in _ENABLED.read_text(encoding="ascii"):
            return 0
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    collapsed = 0
    for start, end in anonymous_regions().items():
        first = max(start, before.get(start, start))
        first, last = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if last - first >= _LEAST_BYTES and madvise(first, last - first, _COLLAPSE) == 0:
            collapsed += last - first
    return collapsed
