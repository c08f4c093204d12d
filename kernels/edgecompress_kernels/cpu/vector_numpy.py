"""vector.py's operations in NumPy on the same addresses, for ``NUMBA_DISABLE_JIT=1``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


def _view(address: int, dtype: Any, count: int) -> Any:
    size = np.dtype(dtype).itemsize * count
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), dtype=dtype)


def read_address(address: int) -> int:
    return int(_view(address, np.int64, 1)[0])


def read_float(address: int) -> np.float32:
    return _view(address, np.float32, 1)[0]  # type: ignore[no-any-return]


def write_int(address: int, value: int) -> None:
    _view(address, np.int32, 1)[0] = value


def write_float(address: int, value: float) -> None:
    _view(address, np.float32, 1)[0] = value


def load_ints(address: int) -> Ints:
    return _view(address, np.int32, 16).copy()  # type: ignore[no-any-return]


def load_floats(address: int) -> Floats:
    return _view(address, np.float32, 16).copy()  # type: ignore[no-any-return]


def load_halves(address: int) -> Floats:
    return _view(address, np.float16, 16).astype(np.float32)  # type: ignore[no-any-return]


def load_bytes(address: int) -> Ints:
    return _view(address, np.uint8, 16).astype(np.int32)  # type: ignore[no-any-return]


def load_bytes_less_128(address: int) -> Ints:
    return load_bytes(address) - np.int32(128)


def less_128(a: Ints) -> Ints:
    return (a.view(np.uint8) ^ np.uint8(128)).view(np.int32)


def load_part(address: int, wanted: int) -> Floats:
    found = np.zeros(16, dtype=np.float32)
    found[: min(wanted, 16)] = _view(address, np.float32, min(wanted, 16))
    return found


def store_floats(address: int, value: Floats) -> None:
    _view(address, np.float32, 16)[:] = value


def store_bytes(address: int, value: Ints) -> None:
    _view(address, np.int8, 16)[:] = value.astype(np.int8)


def prefetch(address: int) -> None:
    """Does nothing: it is only a hint."""


def splat_int(value: int) -> Ints:
    return np.full(16, value, dtype=np.int32)


def splat_float(value: float) -> Floats:
    return np.full(16, value, dtype=np.float32)


def low_nibbles(value: Ints) -> Ints:
    return value & np.int32(0x0F0F0F0F)


def high_nibbles(value: Ints) -> Ints:
    return (value >> 4) & np.int32(0x0F0F0F0F)


def to_floats(value: Ints) -> Floats:
    return value.astype(np.float32)


def round_to_ints(value: Floats) -> Ints:
    return np.rint(value).astype(np.int32)


def add_floats(a: Floats, b: Floats) -> Floats:
    return a + b


def multiply(a: Floats, b: Floats) -> Floats:
    return a * b


def fused_multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    return (a.astype(np.float64) * b + c).astype(np.float32)


def maximum(a: Floats, b: Floats) -> Floats:
    return np.maximum(a, b)


def absolute(a: Floats) -> Floats:
    return np.abs(a)


def largest_lane(a: Floats) -> np.float32:
    return np.float32(a.max())


def sum_lanes(a: Floats) -> np.float32:
    for half in (8, 4, 2, 1):
        a = a + np.roll(a, -half)
    return np.float32(a[0])


def sum_int_lanes(a: Ints) -> np.int32:
    return np.int32(a.sum())


def dot(sums: Ints, weights: Ints, signed: Ints, kind: Any = np.uint8) -> Ints:
    product = weights.view(kind).astype(np.int32) * signed.view(np.int8).astype(np.int32)
    found: Ints = sums + product.reshape(16, 4).sum(axis=1, dtype=np.int32)
    return found


def subtract(a: Floats, b: Floats) -> Floats:
    return a - b


def exponential(x: Floats) -> Floats:
    return np.where(x < -87, 0, np.exp(np.maximum(x, -87).astype(np.float64))).astype(np.float32)


def between(values: Floats, index: int, first: int, last: int) -> Floats:
    numbers = index + np.arange(16)
    return np.where((numbers >= first) & (numbers <= last), values, -np.inf).astype(np.float32)


def first_lane(a: Floats) -> np.float32:
    return np.float32(a[0])


def stack(size: int) -> Callable[[], int]:
    buffer = np.zeros(size + 64, dtype=np.uint8)
    return lambda: int(buffer.ctypes.data + 63) // 64 * 64


def sixteen_dots(size: int, together: int) -> Callable[[int, int, int, int], Floats]:
    def dots(q: int, keys: int, stride: int, last: int) -> Floats:
        left = _view(q, np.float32, size)
        rows = [_view(keys + min(i, last) * stride, np.float32, size) for i in range(16)]
        return np.array([np.dot(left, right) for right in rows], dtype=np.float32)

    return dots


def panel(count: int, width: int) -> SimpleNamespace:
    """As ``vector_rows.panel``: rows are an array [count, 16 * width]."""
    lanes = 16 * width

    def of_rows(address: int, stride: int, size: int) -> Floats:
        return np.stack([_view(address + r * stride, np.float32, size) for r in range(count)])

    def keep(sums: Floats, address: int, stride: int) -> None:
        for r in range(count):
            _view(address + r * stride, np.float32, lanes)[:] = sums[r]

    return SimpleNamespace(
        load=lambda address, stride: of_rows(address, stride, lanes).copy(),
        grow=lambda sums, address, stride: sums * of_rows(address, stride, 1),
        weigh=lambda sums, values, address, stride: fused_multiply_add(
            np.repeat(_view(values, np.float32, lanes)[None], count, 0), of_rows(address, stride, 1), sums
        ),
        keep=keep,
    )


def rows(count: int) -> SimpleNamespace:
    """As ``vector_rows.rows``: a tuple of vectors is an array [count, 16]."""

    def of_rows(address: int, stride: int, dtype: Any) -> Any:
        return np.array([_view(address + r * stride, dtype, 1)[0] for r in range(count)])[:, None]

    def each_dot(kind: Any) -> Callable[[Ints, Ints, int, int], Ints]:
        def of_kind(sums: Ints, weights: Ints, address: int, stride: int) -> Ints:
            signed = of_rows(address, stride, np.int32)
            return np.stack([dot(sums[r], weights, splat_int(signed[r, 0]), kind) for r in range(count)])

        return of_kind

    def scale(sums: Floats, found: Ints, lanes: Floats, address: int, stride: int) -> Floats:
        factor = lanes * of_rows(address, stride, np.float32)
        return fused_multiply_add(to_floats(found), factor, sums)

    def store(sums: Floats, address: int, stride: int, wanted: int) -> None:
        for r in range(count):
            _view(address + r * stride, np.float32, min(wanted, 16))[:] = sums[r, : min(wanted, 16)]

    return SimpleNamespace(
        start=lambda address, stride, factor: np.repeat(of_rows(address, stride, np.int32) * np.int32(factor), 16, 1),
        start_lanes=lambda address, stride, lanes: of_rows(address, stride, np.int32) * lanes,
        zeros=lambda: np.zeros((count, 16), dtype=np.float32),
        dot=each_dot(np.uint8),
        dot_small=each_dot(np.uint8),
        dot_signed=each_dot(np.int8),
        scale=scale,
        add=lambda sums, lanes: sums + lanes,
        store=store,
    )
