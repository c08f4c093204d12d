"""Products of int8 matrices with rows of bytes, and the operations between them: quantization, residual, LayerNorm.

A row of activations is quantized to 256 steps between its minimum and maximum::

    q = rint((x - low) * 255 / (high - low))        x ~ low + q * step
    y[n] = step * scale[n] * sum_k q[k] w[n, k] + low * offset[n] + bias[n],   offset[n] = scale[n] * sum_k w[n, k]

so a row's range need not include zero, and none of it is wasted after GELU, which has almost no negative values.
Weights are signed, 7 or 8 bits, with one scale per output, in panels of three vectors::

    weights  int8     [panels, inputs / 4, 48, 4]
    columns  float32  [panels, 3, 48]: scale, offset, bias

Outputs past the last are zero. A tile of rows by outputs stays in registers over all inputs: 8 by 48 with 32 registers
of sixteen lanes, 4 by 16 where sixteen lanes take two or four registers, 32 by 48 with AMX, in six tile registers. Sums
are exact, so the results are the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba

from edgecompress_kernels.cpu import encoder_vector as e
from edgecompress_kernels.cpu import matrices as m
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.abi import PANEL

_VECTORS = PANEL // 16
_PANEL_BYTES = 64 * _VECTORS


def tile_sizes(vectors: int) -> tuple[int, int, int]:
    """Return a tile's maximum rows, its rows for remainders, and its output vectors, for ``vectors`` registers."""
    return (8, 4, _VECTORS) if vectors >= 32 else (4, 2, 1)


def padded(outputs: int) -> int:
    """Outputs of all panels: the floats in a row of products."""
    return -(-outputs // PANEL) * PANEL


@cache
def product_tile(count: int, width: int, inputs: int, weight_bits: int, jit: Any) -> Any:
    """Multiply ``count`` rows at ``q`` by ``width`` vectors of a panel: floats at ``to``, ``to_stride`` bytes a row."""
    on = e.tile(count, width)
    zeros, finish, keep = on.zeros, on.finish, on.keep
    dot = on.dot if weight_bits == 8 else on.dot_narrow
    four = inputs // 4

    def tile_of(q: int, scales: int, lows: int, weights: int, columns: int, to: int, to_stride: int) -> None:
        sums = zeros()
        for _ in range(four):
            sums = dot(sums, weights, 64, q, inputs)
            weights += _PANEL_BYTES
            q += 4
        keep(finish(sums, columns, 4 * PANEL, scales, lows), to, to_stride)

    return jit(tile_of)


@cache
def product(inputs: int, outputs: int, weight_bits: int, vectors: int, matrices: bool, jit: Any) -> Any:
    """Multiply rows ``q`` uint8 [rows, inputs], with scales and lows, to ``to`` float32 [rows, padded(outputs)].

    Up to seven extra rows are written, so ``to`` must have room; with ``matrices``, rows up to a multiple of sixteen
    are read.
    """
    if matrices:
        return matrix_product(inputs, outputs, jit)
    most_rows, few_rows, width = tile_sizes(vectors)
    most, few = (product_tile(count, width, inputs, weight_bits, jit) for count in (most_rows, few_rows))
    panels, parts, part_bytes = padded(outputs) // PANEL, _VECTORS // width, 64 * width
    weight_bytes, column_bytes = inputs * PANEL, 3 * 4 * PANEL
    to_stride = 4 * padded(outputs)

    def multiply(rows: int, q: int, scales: int, lows: int, weights: int, columns: int, to: int) -> None:
        for panel in range(panels):
            for part in range(parts):
                w = weights + panel * weight_bytes + part * part_bytes
                c = columns + panel * column_bytes + part * part_bytes
                out = to + panel * 4 * PANEL + part * part_bytes
                row = 0
                while row + few_rows < rows:
                    most(q + row * inputs, scales + 4 * row, lows + 4 * row, w, c, out + row * to_stride, to_stride)
                    row += most_rows
                if row < rows:
                    few(q + row * inputs, scales + 4 * row, lows + 4 * row, w, c, out + row * to_stride, to_stride)

    return jit(multiply)


def _row_bytes(inputs: int) -> int:
    """Bytes per row of a tile: the largest divisor of ``inputs``, a multiple of 16."""
    return max(size for size in (16, 32, 48, 64) if inputs % size == 0)


@cache
def _sums_of(blocks: int, inputs: int, jit: Any) -> Any:
    """Multiply 16 * ``blocks`` rows at ``q`` by a panel: int32 [16 * blocks, 48] at ``sums``."""
    row_bytes = _row_bytes(inputs)
    on, steps, weight_step = m.matrices(row_bytes, blocks), inputs // row_bytes, _PANEL_BYTES * row_bytes // 4
    clear, multiply, write = on.clear, on.multiply, on.write

    def sums_of(q: int, weights: int, sums: int) -> None:
        clear()
        for _ in range(steps):
            multiply(q, inputs, weights, _PANEL_BYTES)
            weights += weight_step
            q += row_bytes
        write(sums, _PANEL_BYTES)

    return jit(sums_of)


@cache
def matrix_product(inputs: int, outputs: int, jit: Any) -> Any:
    """Like ``product``, with AMX tiles: rows are read and summed up to a multiple of sixteen."""
    few, many = _sums_of(1, inputs, jit), _sums_of(2, inputs, jit)
    on, rows_on = m.matrices(_row_bytes(inputs), 2), e.tile(8, _VECTORS)
    fill, load, release = on.fill, on.load, on.release
    read, finish, keep = rows_on.read, rows_on.finish, rows_on.keep
    scratch = v.stack(32 * _PANEL_BYTES + m.CONFIG_BYTES)
    panels, weight_bytes, column_bytes = padded(outputs) // PANEL, inputs * PANEL, 3 * 4 * PANEL
    to_stride = 4 * padded(outputs)

    def multiply(rows: int, q: int, scales: int, lows: int, weights: int, columns: int, to: int) -> None:
        sums = scratch()
        fill(sums + 32 * _PANEL_BYTES)
        load(sums + 32 * _PANEL_BYTES)
        for panel in range(panels):
            w, c, out = weights + panel * weight_bytes, columns + panel * column_bytes, to + panel * 4 * PANEL
            row = 0
            while row < rows:
                here = min(rows - row, 32)
                if here > 16:
                    many(q + row * inputs, w, sums)
                else:
                    few(q + row * inputs, w, sums)
                for r in range(0, here, 8):
                    n = row + r
                    found = finish(
                        read(sums + r * _PANEL_BYTES, _PANEL_BYTES), c, 4 * PANEL, scales + 4 * n, lows + 4 * n
                    )
                    keep(found, out + n * to_stride, to_stride)
                row += 32
        release()

    return jit(multiply)


@cache
def quantize(width: int, jit: Any, *, bent: bool = False) -> Any:
    """Quantize one row: x float32 [width] to q uint8, with its scale and low.

    If ``bent``, applies GELU to x first, in place. Multiplies by ``smooth`` float32 [width] unless that address is 0.
    """
    vectors = width // 16

    def row(x: int, smooth: int, q: int, scale: int, low: int) -> None:
        least = v.splat_float(numba.float32(float("inf")))
        most = v.splat_float(numba.float32(float("-inf")))
        for i in range(vectors):
            value = v.load_floats(x + 64 * i)
            if bent:
                value = e.gelu(value)
                v.store_floats(x + 64 * i, value)
            if smooth != 0:
                value = v.multiply(value, v.load_floats(smooth + 64 * i))
            least = e.lesser(least, value)
            most = e.greater(most, value)
        bottom = e.least_lane(least)
        step = (e.greatest_lane(most) - bottom) / numba.float32(255.0)
        inverse = numba.float32(0.0)
        if step > numba.float32(0.0):
            inverse = numba.float32(1.0) / step
        v.write_float(scale, step)
        v.write_float(low, bottom)
        factor, base = v.splat_float(inverse), v.splat_float(bottom)
        for i in range(vectors):
            value = v.load_floats(x + 64 * i)
            if smooth != 0:
                value = v.multiply(value, v.load_floats(smooth + 64 * i))
            v.store_bytes(q + 16 * i, v.round_to_ints(v.multiply(v.subtract(value, base), factor)))

    return jit(row)


@cache
def normalize(width: int, jit: Any) -> Any:
    """LayerNorm of one row of ``x`` + ``residual`` to ``y``, all float32 [width]. Overwrites ``x``."""
    vectors = width // 16

    def row(x: int, residual: int, gamma: int, beta: int, epsilon: float, y: int) -> None:
        total = v.splat_float(numba.float32(0.0))
        for i in range(vectors):
            value = v.add_floats(v.load_floats(x + 64 * i), v.load_floats(residual + 64 * i))
            v.store_floats(x + 64 * i, value)
            total = v.add_floats(total, value)
        mean = v.splat_float(v.sum_lanes(total) / numba.float32(width))
        squares = v.splat_float(numba.float32(0.0))
        for i in range(vectors):
            value = v.subtract(v.load_floats(x + 64 * i), mean)
            squares = v.fused_multiply_add(value, value, squares)
        variance = v.sum_lanes(squares) / numba.float32(width)
        factor = v.splat_float(e.reciprocal_root(variance + epsilon))
        for i in range(vectors):
            value = v.multiply(v.subtract(v.load_floats(x + 64 * i), mean), factor)
            value = v.fused_multiply_add(value, v.load_floats(gamma + 64 * i), v.load_floats(beta + 64 * i))
            v.store_floats(y + 64 * i, value)

    return jit(row)
