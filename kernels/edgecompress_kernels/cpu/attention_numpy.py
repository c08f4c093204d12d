"""attention_vector.py's operations in NumPy on the same addresses, for ``NUMBA_DISABLE_JIT=1``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from edgecompress_kernels.cpu.vector_numpy import Floats, Ints, _view, fused_multiply_add

_ORDER = [4 * q + i for q in range(4) for i in (0, 2, 1, 3)]


def divide(a: Floats, b: Floats) -> Floats:
    return np.asarray(a / b)


def store_shorts(address: int, value: Ints) -> None:
    _view(address, np.int16, 16)[:] = value.astype(np.int16)[_ORDER]


def copy_bytes(to: int, source: int) -> None:
    _view(to, np.int8, 16)[:] = _view(source, np.int8, 16)


def to_float(value: int) -> np.float32:
    return np.float32(value)


def load_quarters(address: int) -> Floats:
    return np.concatenate([_view(address + 64 * i, np.float32, 4) for i in range(4)])


def layout(size: int) -> SimpleNamespace:
    """As ``attention_vector.layout``."""

    def rows_of(address: int, rows: int, count: int) -> Any:
        return np.stack([_view(address + size * i, np.int8, count) for i in range(rows)])

    def keys(rows: int, to: int) -> None:
        found = rows_of(rows, 16, 16).reshape(16, 4, 4).transpose(1, 0, 2)
        _view(to, np.int8, 256)[:] = found.reshape(-1)

    def values(rows: int, to: int) -> None:
        found = rows_of(rows, 4, 64).reshape(4, 4, 4, 4).transpose(2, 1, 3, 0)  # row, l, j, i -> j, l, i, row
        _view(to, np.int8, 256)[:] = found.reshape(-1)

    def rest(rows: int, to: int) -> None:
        _view(to, np.int8, 64)[:] = rows_of(rows, 4, 16).T.reshape(-1)

    return SimpleNamespace(keys=keys, values=values, rest=rest)


def tile(count: int) -> SimpleNamespace:
    """As ``attention_vector.tile``: rows are an array [count, 16]."""

    def floats_of(address: int, step: int = 4) -> Any:
        return np.array([_view(address + step * r, np.float32, 1) for r in range(count)])

    def places(address: int, stride: int) -> list[Any]:
        return [_view(address + r * stride, np.float32, 16) for r in range(count)]

    def dot(sums: Ints, side: int, x: int, stride: int) -> Ints:
        weights = _view(side, np.int8, 64).reshape(16, 4).astype(np.int32)
        shorts = np.stack([_view(x + r * stride, np.int16, 4)[[0, 2, 1, 3]] for r in range(count)])
        return np.asarray(sums + shorts.astype(np.int32) @ weights.T, dtype=np.int32)

    def scale(sums: Ints, factors: int, step: int, to: int, stride: int) -> None:
        for place, found in zip(places(to, stride), sums.astype(np.float32) * floats_of(factors, step), strict=True):
            place[:] = found

    def gather(sums: Ints, old: int, new: int, to: int, stride: int) -> None:
        kept = np.stack(places(to, stride)) * floats_of(old)
        found = fused_multiply_add(sums.astype(np.float32), floats_of(new), kept)
        for place, row in zip(places(to, stride), found, strict=True):
            place[:] = row

    return SimpleNamespace(zeros=lambda: np.zeros((count, 16), dtype=np.int32), dot=dot, scale=scale, gather=gather)
