"""encoder_vector.py's operations in NumPy on the same addresses, for ``NUMBA_DISABLE_JIT=1``."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgecompress_kernels.cpu.vector_numpy import Floats, Ints, _view, between, dot, fused_multiply_add, splat_int


def greater(a: Floats, b: Floats) -> Floats:
    return np.where(a > b, a, b)


def lesser(a: Floats, b: Floats) -> Floats:
    return np.where(a < b, a, b)


def greatest_lane(a: Floats) -> np.float32:
    return np.float32(np.nanmax(a))


def least_lane(a: Floats) -> np.float32:
    return np.float32(np.nanmin(a))


def power(x: Floats) -> Floats:
    return np.exp(np.maximum(x, np.float32(-87)).astype(np.float64)).astype(np.float32)


def gelu(x: Floats) -> Floats:
    error_function = np.vectorize(math.erf)(x.astype(np.float64) / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + error_function), dtype=np.float32)


def sigmoid(x: Floats) -> Floats:
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def reciprocal_root(x: float) -> np.float32:
    return np.float32(1 / math.sqrt(x))


def interleave(a: Ints, b: Ints, c: Ints, d: Ints) -> Ints:
    found: Ints = np.stack([a, b, c, d], axis=1).astype(np.uint8).view(np.int32).reshape(16)
    return found


def add_ints(a: Ints, b: Ints) -> Ints:
    return a + b


def zero_ints() -> Ints:
    return np.zeros(16, dtype=np.int32)


def read_int(address: int) -> np.int32:
    return np.int32(_view(address, np.int32, 1)[0])


def store_ints(address: int, value: Ints) -> None:
    _view(address, np.int32, 16)[:] = value


def copy_biased(to: int, source: int) -> None:
    _view(to, np.uint8, 4)[:] = _view(source, np.uint8, 4) ^ 128


def tile(count: int, width: int) -> SimpleNamespace:
    """As ``encoder_vector.tile``: rows are an array [count, width, 16]."""

    def of_rows(address: int, stride: int, dtype: Any) -> Any:
        return np.array([_view(address + r * stride, dtype, 1)[0] for r in range(count)])[:, None, None]

    def product(sums: Ints, weights: int, step: int, x: int, stride: int, *, rows_signed: bool) -> Ints:
        side = [_view(weights + c * step, np.int32, 16) for c in range(width)]
        row = [splat_int(int(value)) for value in of_rows(x, stride, np.int32)[:, 0, 0]]
        pairs = [[(side[c], row[r]) if rows_signed else (row[r], side[c]) for c in range(width)] for r in range(count)]
        return np.stack([np.stack([dot(sums[r, c], *pairs[r][c]) for c in range(width)]) for r in range(count)])

    def finish(found: Ints, columns: int, step: int, x_scales: int, x_lows: int) -> Floats:
        kinds = [_view(columns + kind * step, np.float32, 16 * width) for kind in range(3)]
        scale, offset, bias = (kind.reshape(width, 16) for kind in kinds)
        fixed = fused_multiply_add(of_rows(x_lows, 4, np.float32), offset, bias)
        return fused_multiply_add(found.astype(np.float32), of_rows(x_scales, 4, np.float32) * scale, fixed)

    def weigh(
        found: Ints, scales: int, step: int, x_scales: int, stride: int, index: int, first: int, last: int
    ) -> Floats:
        lanes = np.stack([_view(scales + c * step, np.float32, 16) for c in range(width)])
        zero = np.zeros(16, dtype=np.float32)
        mask = np.stack([between(zero, index + 16 * c, first, last) for c in range(width)])
        return fused_multiply_add(found.astype(np.float32), lanes * of_rows(x_scales, stride, np.float32), mask)

    def grow(sums: Floats, found: Ints, factor: float) -> Floats:
        return fused_multiply_add(found.astype(np.float32), np.full(16, factor, dtype=np.float32), sums)

    def load(address: int, stride: int) -> Floats:
        rows = [_view(address + r * stride, np.float32, 16 * width).reshape(width, 16) for r in range(count)]
        return np.stack(rows)

    def read(address: int, stride: int) -> Ints:
        rows = [_view(address + r * stride, np.int32, 16 * width).reshape(width, 16) for r in range(count)]
        return np.stack(rows)

    def keep(sums: Floats, address: int, stride: int) -> None:
        for r in range(count):
            _view(address + r * stride, np.float32, 16 * width)[:] = sums[r].reshape(-1)

    return SimpleNamespace(
        zeros=lambda: np.zeros((count, width, 16), dtype=np.int32),
        start=lambda address, stride: np.repeat(of_rows(address, stride, np.int32), width, 1).repeat(16, 2),
        dot=lambda *values: product(*values, rows_signed=False),
        dot_narrow=lambda *values: product(*values, rows_signed=False),
        dot_signed=lambda *values: product(*values, rows_signed=True),
        finish=finish,
        weigh=weigh,
        grow=grow,
        load=load,
        read=read,
        keep=keep,
    )


def matrices(row_bytes: int, blocks: int) -> SimpleNamespace:
    """As ``matrices.matrices``; tiles are not kept after a call of ``multiply``, so ``products`` adds nothing."""
    sums = np.zeros((16 * blocks, 48), dtype=np.int32)

    def multiply(rows: int, row_stride: int, weights: int, weight_stride: int) -> None:
        lines = [_view(weights + i * weight_stride, np.int8, 192).astype(np.int32) for i in range(row_bytes // 4)]
        matrix = np.stack(lines).reshape(-1, 48, 4).transpose(0, 2, 1).reshape(row_bytes, 48)
        for r in range(16 * blocks):
            sums[r] += _view(rows + r * row_stride, np.uint8, row_bytes).astype(np.int32) @ matrix

    def write(at: int, stride: int) -> None:
        for r, row in enumerate(sums):
            _view(at + r * stride, np.int32, 48)[:] = row

    return SimpleNamespace(
        fill=lambda config: None,
        load=lambda config: None,
        release=lambda: None,
        clear=lambda: sums.fill(0),
        multiply=multiply,
        write=write,
    )
