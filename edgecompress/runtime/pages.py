"""Moves weights to huge pages: a decode step reads every weight once, and 4 KiB pages cost about a tenth of its time.

With transparent_hugepage set to "madvise", its usual setting, Linux gives huge pages only on request, and ONNX Runtime
does not request them for the weights it packs. So the large anonymous regions that a session allocated are moved
afterwards with MADV_COLLAPSE (Linux 6.1 and later), which copies them into huge pages at once. If the kernel cannot,
only speed is lost.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COLLAPSE = 25  # MADV_COLLAPSE
_HUGE = 2 << 20
_LEAST_BYTES = 4 << 20  # smallest region worth moving


def anonymous_regions() -> dict[int, int]:
    """Start -> end of this process's private writable memory that maps no file; empty without /proc."""
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
    """Move memory allocated since ``before`` to huge pages; return the bytes that the kernel moved."""
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
