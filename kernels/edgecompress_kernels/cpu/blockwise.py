"""Products of blockwise int4 or int8 matrices with activations that are quantized to int8 in the same blocks.

They compute ``MatMulNBits`` at accuracy_level 4, from weights packed for sequential reads: sixteen adjacent outputs (a
*tile*), and for each of them the four or eight weights of one dot-product instruction::

    weights  uint8   [tiles, blocks, block / 4 (8 bits) or block / 8 (4 bits), 64]
    scales   float32 or float16 [tiles, blocks, 16]
    zeros    uint8   [tiles, blocks, 16], optional: the default zero point is 8 or 128

Byte ``4 r + i`` of a vector is weight ``i`` of output ``r``; with 4 bits, low nibbles hold the first four inputs and
high nibbles the next four. A block's sums are exact integers, and blocks are added in order, so a row's result is
bitwise the same alone or with other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba

from edgecompress_kernels.cpu import encoder_vector as e
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.abi import MATMUL_PARAMETERS
from edgecompress_kernels.cpu.vector_rows import rows

SLOTS = MATMUL_PARAMETERS.names
(
    X, Q, X_SCALES, X_SUMS, WEIGHTS, SCALES, ZEROS, BIAS, Y, ROWS, OUTPUTS, INPUTS, TILES_PER_PART, COLUMNS,
) = MATMUL_PARAMETERS.offsets.values()  # fmt: skip


@cache
def quantize_rows(block: int) -> Callable[[int, int], None]:
    """Quantize some columns of a row of x float32 [rows, inputs] to q int8, with scale and negated sum per block."""

    def kernel(p: int, part: int) -> None:
        inputs, columns = v.read_address(p + INPUTS), v.read_address(p + COLUMNS)
        chunks = (inputs + columns - 1) // columns
        row, first = part // chunks, part % chunks * columns
        x = v.read_address(p + X) + (row * inputs + first) * 4
        q = v.read_address(p + Q) + row * inputs + first
        scales = v.read_address(p + X_SCALES) + (row * inputs + first) // block * 4
        sums = v.read_address(p + X_SUMS) + (row * inputs + first) // block * 4
        for b in range(min(columns, inputs - first) // block):
            largest = v.splat_float(numba.float32(0.0))
            for i in range(block // 16):
                largest = v.maximum(largest, v.absolute(v.load_floats(x + 64 * i)))
            most = v.largest_lane(largest)
            scale = most / numba.float32(127.0)
            inverse = numba.float32(0.0)
            if scale != numba.float32(0.0):
                inverse = numba.float32(1.0) / scale
            total = e.zero_ints()
            for i in range(block // 16):
                whole = v.round_to_ints(v.multiply(v.load_floats(x + 64 * i), v.splat_float(inverse)))
                v.store_bytes(q + 16 * i, whole)
                total = e.add_ints(total, whole)
            v.write_float(scales + 4 * b, scale)
            v.write_int(sums + 4 * b, numba.int32(-v.sum_int_lanes(total)))
            x += 4 * block
            q += block

    return kernel


def multiply_tile(
    bits: int, block: int, count: int, half: bool, zero_points: bool, signed: bool
) -> Callable[..., None]:
    """Multiply ``count`` rows, starting at ``row``, by one tile: sixteen outputs per row.

    ``signed``: subtract 128 from 8-bit weights and zero points, for a dot product of signed bytes.
    """
    on = rows(count)  # numba needs a plain name
    start, start_lanes, nothing, scale, add, store = on.start, on.start_lanes, on.zeros, on.scale, on.add, on.store
    vectors = block * bits // 32
    load_scales = v.load_halves if half else v.load_floats
    scale_bytes = 32 if half else 64
    four = bits == 4
    shifted = signed and not four
    middle = 0 if shifted else 1 << (bits - 1)
    dot = on.dot_small if four else on.dot_signed if signed else on.dot
    load_zeros = v.load_bytes_less_128 if shifted else v.load_bytes

    def tile_of(p: int, row: int, tile: int) -> None:
        inputs, outputs = v.read_address(p + INPUTS), v.read_address(p + OUTPUTS)
        blocks = inputs // block
        q = v.read_address(p + Q) + row * inputs
        x_scales = v.read_address(p + X_SCALES) + row * blocks * 4
        x_sums = v.read_address(p + X_SUMS) + row * blocks * 4
        weights = v.read_address(p + WEIGHTS) + tile * blocks * vectors * 64
        scales = v.read_address(p + SCALES) + tile * blocks * scale_bytes
        zeros = v.read_address(p + ZEROS) + tile * blocks * 16
        sums = nothing()
        for b in range(blocks):
            if zero_points:
                found = start_lanes(x_sums + 4 * b, 4 * blocks, load_zeros(zeros + 16 * b))
            else:
                found = start(x_sums + 4 * b, 4 * blocks, numba.int32(middle))
            for i in range(vectors):
                packed = v.load_ints(weights + 64 * i)
                if four:
                    found = dot(found, v.low_nibbles(packed), q + 8 * i, inputs)
                    found = dot(found, v.high_nibbles(packed), q + 8 * i + 4, inputs)
                elif shifted:
                    found = dot(found, v.less_128(packed), q + 4 * i, inputs)
                else:
                    found = dot(found, packed, q + 4 * i, inputs)
            sums = scale(sums, found, load_scales(scales + scale_bytes * b), x_scales + 4 * b, 4 * blocks)
            weights += vectors * 64
            q += block
        bias = v.read_address(p + BIAS)
        if bias != 0:
            sums = add(sums, v.load_part(bias + 64 * tile, outputs - 16 * tile))
        y = v.read_address(p + Y) + (row * outputs + 16 * tile) * 4
        store(sums, y, 4 * outputs, outputs - 16 * tile)

    return tile_of


@cache
def multiply(
    bits: int, block: int, half: bool, zero_points: bool, signed: bool, most_rows: int, jit: Any
) -> Callable[[int, int], None]:
    """Part ``part`` of the product: ``tiles_per_part`` tiles, all rows, ``most_rows`` at a time, then the rest."""
    tiles_of = {c: jit(multiply_tile(bits, block, c, half, zero_points, signed)) for c in {1, 2, 4, most_rows}}
    one, two, four, most = (tiles_of[count] for count in (1, 2, 4, most_rows))

    def kernel(p: int, part: int) -> None:
        rows = v.read_address(p + ROWS)
        tiles = (v.read_address(p + OUTPUTS) + 15) // 16
        each = v.read_address(p + TILES_PER_PART)
        first = part * each
        last = min(first + each, tiles)
        row = 0
        while row + most_rows <= rows:
            for tile in range(first, last):
                most(p, row, tile)
            row += most_rows
        while row + 4 <= rows:
            for tile in range(first, last):
                four(p, row, tile)
            row += 4
        while row + 2 <= rows:
            for tile in range(first, last):
                two(p, row, tile)
            row += 2
        if row < rows:
            for tile in range(first, last):
                one(p, row, tile)

    return kernel
