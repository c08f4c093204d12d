"""Loads weights into huge pages and passes them to ONNX Runtime without a copy.

A decode step reads every weight once. A mapped file has 4 KiB pages, and their address translation costs up to half of
the bandwidth in a virtual machine. So the weights of our kernels are read into one anonymous region backed by huge
pages.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgecompress.errors import BundleError

HUGE = 2 << 20
_LINE = 64  # weights are aligned to cache lines
_PIECE = 32 << 20  # bytes per read


@dataclass(frozen=True, kw_only=True)
class Weight:
    """An initializer in the model's data file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


def huge_region(size: int) -> npt.NDArray[np.uint8]:
    """Return zeros, uint8 [size], aligned to a huge page and backed by huge pages if the system has them."""
    region = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # without huge pages it is only slower
            region.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(region, dtype=np.uint8)
    start = -raw.ctypes.data % HUGE
    return raw[start : start + size]


def read_table(path: Path) -> list[Weight]:
    """Read the table that the compile stage wrote. Raises BundleError if it is invalid."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Weight(**{**row, "shape": tuple(row["shape"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path.name} is not a valid table of weights: {error}") from error


def add_weights(options: ort.SessionOptions, table: list[Weight], data: Path) -> list[Any]:
    """Read the weights of ``table`` from ``data`` and add them to ``options`` as initializers.

    Returns objects that must stay alive as long as the session. Raises BundleError if the file is too short.
    """
    places, size = [], 0
    for weight in table:
        places.append(size)
        size += -(-weight.bytes // _LINE) * _LINE
    region = huge_region(max(size, 1))
    file = os.open(data, os.O_RDONLY)
    try:
        pieces = [
            (place + at, weight.offset + at, min(_PIECE, weight.bytes - at))
            for weight, place in zip(table, places, strict=True)
            for at in range(0, weight.bytes, _PIECE)
        ]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            done = list(pool.map(lambda p: os.preadv(file, [region[p[0] : p[0] + p[2]].data], p[1]), pieces))
    finally:
        os.close(file)
    if any(count != piece[2] for count, piece in zip(done, pieces, strict=True)):
        raise BundleError(f"{data.name} ends before its weights do")
    kept: list[Any] = [region]
    for weight, place in zip(table, places, strict=True):
        array = region[place : place + weight.bytes].view(weight.dtype).reshape(weight.shape)
        value = ort.OrtValue.ortvalue_from_numpy(array)
        options.add_initializer(weight.name, value)
        kept += [array, value]
    return kept
