"""A decoder layer's operations between its products, on float32 rows: addition, RMS norm, the MLP's gate.

Part ``part`` is ``columns`` columns of a row, a multiple of sixteen. A row's result does not depend on the other rows
or on the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba

from edgecompress_kernels.cpu import encoder_vector as e
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.abi import ROWS_PARAMETERS

SLOTS = ROWS_PARAMETERS.names
X, OTHER, Y, WIDTH, COLUMNS, CONSTANT = ROWS_PARAMETERS.offsets.values()


@cache
def add_rows() -> Callable[[int, int], None]:
    """y = x + other, [rows, width] each."""

    def kernel(p: int, part: int) -> None:
        width, columns = v.read_address(p + WIDTH), v.read_address(p + COLUMNS)
        chunks = (width + columns - 1) // columns
        row, first = part // chunks, part % chunks * columns
        start = (row * width + first) * 4
        x, other, y = v.read_address(p + X) + start, v.read_address(p + OTHER) + start, v.read_address(p + Y) + start
        for at in range(0, 4 * min(columns, width - first), 64):
            v.store_floats(y + at, v.add_floats(v.load_floats(x + at), v.load_floats(other + at)))

    return kernel


@cache
def normalize_rows() -> Callable[[int, int], None]:
    """y = x / sqrt(mean(x ** 2) + epsilon) * other, with other [width]; a part is a whole row."""

    def kernel(p: int, part: int) -> None:
        width = v.read_address(p + WIDTH)
        start = part * width * 4
        x, y, other = v.read_address(p + X) + start, v.read_address(p + Y) + start, v.read_address(p + OTHER)
        squares = v.splat_float(numba.float32(0.0))
        for at in range(0, 4 * width, 64):
            values = v.load_floats(x + at)
            squares = v.fused_multiply_add(values, values, squares)
        mean = v.sum_lanes(squares) / numba.float32(width)
        factor = v.splat_float(e.reciprocal_root(mean + v.read_float(p + CONSTANT)))
        for at in range(0, 4 * width, 64):
            v.store_floats(y + at, v.multiply(v.multiply(v.load_floats(x + at), factor), v.load_floats(other + at)))

    return kernel


@cache
def gate_rows() -> Callable[[int, int], None]:
    """y = a * sigmoid(alpha * a) * b, [rows, width], where a and b are the halves of each row of x [rows, 2 width]."""

    def kernel(p: int, part: int) -> None:
        width, columns = v.read_address(p + WIDTH), v.read_address(p + COLUMNS)
        chunks = (width + columns - 1) // columns
        row, first = part // chunks, part % chunks * columns
        a = v.read_address(p + X) + (row * 2 * width + first) * 4
        b = a + 4 * width
        y = v.read_address(p + Y) + (row * width + first) * 4
        alpha = v.splat_float(v.read_float(p + CONSTANT))
        for at in range(0, 4 * min(columns, width - first), 64):
            values = v.load_floats(a + at)
            bent = v.multiply(values, e.sigmoid(v.multiply(values, alpha)))
            v.store_floats(y + at, v.multiply(bent, v.load_floats(b + at)))

    return kernel
