"""int8 attention within packed sequences: each token attends only to its own sequence.

Queries, keys and values are quantized per token and head; keys and values are in blocks of sixteen packed tokens::

    q         int8     [tokens, heads * D]          scales float32 and -128 * sums int32 [tokens, heads]
    keys      [heads, blocks, 16 * D + 64 bytes]    uint8 [D / 4, 16, 4] with zero 128, then scales float32 [16]
    values    the same                              int8 [4, D, 4] (four tokens interleaved), then scales

Softmax is float32; its weights, times the values' scales, are quantized to bytes for the second product. Keys are
processed in chunks of 512 with a running maximum, so sequences can have any length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from edgecompress_kernels.cpu import encoder_vector as e
from edgecompress_kernels.cpu import vector as v

CHUNK = 512
_BLOCKS = CHUNK // 16


def block_bytes(size: int) -> int:
    """Bytes of sixteen tokens' keys, or values, of one head."""
    return 16 * size + 64


def tile_sizes(size: int, vectors: int) -> tuple[int, int, int]:
    """Return queries, key blocks and value vectors per tile that fit in ``vectors`` vector registers."""
    return (max(1, min(8, 256 // size)), 2, size // 16) if vectors >= 32 else (4, 1, 1)


def round_head(size: int, jit: Any) -> Any:
    """Quantize x float32 [D] to int8 [D] at ``to``; return the scale, and write the sum of the bytes to ``total``."""
    vectors = size // 16

    def of_head(x: int, to: int, total: int) -> Any:
        most = v.splat_float(numba.float32(0.0))
        for i in range(vectors):
            most = e.greater(most, v.absolute(v.load_floats(x + 64 * i)))
        scale = e.greatest_lane(most) / numba.float32(127.0)
        inverse = numba.float32(0.0)
        if scale > numba.float32(0.0):
            inverse = numba.float32(1.0) / scale
        factor, sums = v.splat_float(inverse), e.zero_ints()
        for i in range(vectors):
            whole = v.round_to_ints(v.multiply(v.load_floats(x + 64 * i), factor))
            v.store_bytes(to + 16 * i, whole)
            sums = e.add_ints(sums, whole)
        v.write_int(total, v.sum_int_lanes(sums))
        return scale

    return jit(of_head)


def pack_rows(heads: int, size: int, stride: int, jit: Any) -> Any:
    """Quantize and pack float32 rows [q | k | v], ``stride`` bytes apart; ``first`` is a multiple of four.

    Writes ``rows`` rows starting at ``first``; scales of the last block's lanes past ``tokens`` become zero.
    """
    width, per_block = heads * size, block_bytes(size)
    head_round = round_head(size, jit)
    scratch = v.stack(4 * size + 64)
    fours, vectors = size // 4, size // 16

    def pack(
        x: int, first: int, rows: int, tokens: int, blocks: int, scale: float, q: int, q_scales: int, q_sums: int,
        keys: int, values: int,
    ) -> None:  # fmt: skip
        temporary = scratch()
        four = temporary + 64
        for h in range(heads):
            source = x + 4 * size * h
            for r in range(rows):
                n = first + r
                at = 4 * (n * heads + h)
                found = head_round(source, q + n * width + h * size, temporary)
                v.write_float(q_scales + at, found * scale)
                v.write_int(q_sums + at, numba.int32(-128) * e.read_int(temporary))
                place = keys + (h * blocks + (n >> 4)) * per_block
                lane = 4 * (n & 15)
                found = head_round(source + 4 * width, four, temporary)
                v.write_float(place + 16 * size + lane, found)
                for i in range(fours):
                    e.copy_biased(place + 64 * i + lane, four + 4 * i)
                source += stride
            source = x + 4 * size * h + 8 * width
            for group in range((rows + 3) >> 2):
                n = first + 4 * group
                place = values + (h * blocks + (n >> 4)) * per_block
                part = place + (n & 15) * size
                for i in range(4):
                    found = numba.float32(0.0)
                    if 4 * group + i < rows:
                        found = head_round(source, four + size * i, temporary)
                    v.write_float(place + 16 * size + 4 * ((n & 15) + i), found)
                    source += stride
                for i in range(vectors):
                    bytes_of = four + 16 * i
                    lanes = e.interleave(
                        v.load_bytes(bytes_of), v.load_bytes(bytes_of + size), v.load_bytes(bytes_of + 2 * size),
                        v.load_bytes(bytes_of + 3 * size),
                    )  # fmt: skip
                    e.store_ints(part + 64 * i, lanes)
            lane = tokens & 15
            if first + rows == tokens and lane != 0:
                last = (h * blocks + blocks - 1) * per_block + 16 * size
                while lane < 16:
                    v.write_float(keys + last + 4 * lane, numba.float32(0.0))
                    v.write_float(values + last + 4 * lane, numba.float32(0.0))
                    lane += 1

    return jit(pack)


def score_blocks(count: int, heads: int, size: int, width: int) -> Callable[..., None]:
    """Multiply ``count`` queries by ``width`` key blocks: floats at ``to``, rows CHUNK floats apart; -inf outside."""
    on = e.tile(count, width)
    start, dot, weigh, keep = on.start, on.dot_signed, on.weigh, on.keep
    fours, per_block, q_stride, row = size // 4, block_bytes(size), heads * size, 4 * heads

    def score(q: int, q_scales: int, q_sums: int, keys: int, index: int, first: int, last: int, to: int) -> None:
        sums = start(q_sums, row)
        for i in range(fours):
            sums = dot(sums, keys + 64 * i, per_block, q + 4 * i, q_stride)
        found = weigh(sums, keys + 16 * size, per_block, q_scales, row, index, first, last)
        keep(found, to, 4 * CHUNK)

    return score


def weigh_values(count: int, size: int, width: int) -> Callable[..., None]:
    """Add bytes of ``count`` rows times values of ``blocks`` blocks, times ``factor``, to ``out`` [count, D]."""
    on = e.tile(count, width)
    zeros, dot, grow, load, keep = on.zeros, on.dot, on.grow, on.load, on.keep
    per_block = block_bytes(size)

    def weigh(weights: int, values: int, blocks: int, factor: float, out: int) -> None:
        for part in range(0, 4 * size, 64 * width):
            value, row = values + part, weights
            sums = zeros()
            for _ in range(blocks):
                for i in range(4):
                    sums = dot(sums, value + 4 * size * i, 64, row + 4 * i, CHUNK)
                value += per_block
                row += 16
            keep(grow(load(out + part, 4 * size), sums, factor), out + part, 4 * size)

    return weigh


def attend_rows(heads: int, size: int, vectors_held: int, jit: Any) -> Any:
    """Attend a tile's queries, starting at row ``q``, to tokens [first, end): ``to`` float32, rows H * D apart.

    Rows past the caller's own are computed too, from arbitrary memory, and do not affect other rows.
    """
    count, together, width = tile_sizes(size, vectors_held)
    many, one = (jit(score_blocks(count, heads, size, blocks)) for blocks in (together, 1))
    weigh = jit(weigh_values(count, size, width))
    per_block = block_bytes(size)
    scores_bytes, weights_bytes, out_bytes = 4 * CHUNK * count, CHUNK * count, 4 * size * count
    scratch = v.stack(scores_bytes + weights_bytes + out_bytes + 128)
    vectors = size // 16

    def attend(q: int, q_scales: int, q_sums: int, keys: int, values: int, first: int, end: int, to: int) -> None:
        scores = scratch()
        weights = scores + scores_bytes
        out = weights + weights_bytes
        highest, total = out + out_bytes, out + out_bytes + 64
        nothing = v.splat_float(numba.float32(0.0))
        for i in range(count * vectors):
            v.store_floats(out + 64 * i, nothing)
        for r in range(count):
            v.write_float(highest + 4 * r, numba.float32(float("-inf")))
            v.write_float(total + 4 * r, numba.float32(0.0))
        block, last_block = first >> 4, (end + 15) >> 4
        while block < last_block:
            blocks = min(_BLOCKS, last_block - block)
            key, value = keys + block * per_block, values + block * per_block
            b = 0
            while b + together <= blocks:
                many(q, q_scales, q_sums, key + b * per_block, 16 * (block + b), first, end - 1, scores + 64 * b)
                b += together
            if b < blocks:
                one(q, q_scales, q_sums, key + b * per_block, 16 * (block + b), first, end - 1, scores + 64 * b)
            largest = nothing
            for b in range(blocks):  # other sequences in a block have weight 0
                scale = v.load_floats(value + b * per_block + 16 * size)
                largest = e.greater(largest, v.between(scale, 16 * (block + b), first, end - 1))
            step = e.greatest_lane(largest) / numba.float32(255.0)
            inverse = numba.float32(0.0)
            if step > numba.float32(0.0):
                inverse = numba.float32(1.0) / step
            shrink = v.splat_float(inverse)
            for r in range(count):
                row = scores + 4 * CHUNK * r
                before = v.read_float(highest + 4 * r)
                most = v.splat_float(before)
                for b in range(blocks):
                    most = e.greater(most, v.load_floats(row + 64 * b))
                now = e.greatest_lane(most)
                v.write_float(highest + 4 * r, now)
                base, sums = v.splat_float(now), nothing
                for b in range(blocks):
                    weight = e.power(v.subtract(v.load_floats(row + 64 * b), base))
                    sums = v.add_floats(sums, weight)
                    scale = v.multiply(v.load_floats(value + b * per_block + 16 * size), shrink)
                    v.store_bytes(weights + CHUNK * r + 16 * b, v.round_to_ints(v.multiply(weight, scale)))
                found = v.sum_lanes(sums)
                if before > numba.float32(float("-inf")):
                    factor = v.first_lane(e.power(v.splat_float(before - now)))
                    found += v.read_float(total + 4 * r) * factor
                    for i in range(vectors):
                        place = out + 4 * size * r + 64 * i
                        v.store_floats(place, v.multiply(v.load_floats(place), v.splat_float(factor)))
                v.write_float(total + 4 * r, found)
            weigh(weights, value, blocks, step, out)
            block += blocks
        for r in range(count):
            factor = v.splat_float(numba.float32(1.0) / v.read_float(total + 4 * r))
            for i in range(vectors):
                place = out + 4 * size * r + 64 * i
                v.store_floats(to + 4 * heads * size * r + 64 * i, v.multiply(v.load_floats(place), factor))

    return jit(attend)
