"""Grouped-query attention with an in-place int8 KV cache: rotary, quantization, append and softmax in one operator.

Keys and values are int8 [B, Hk, capacity, D]: rint(x / scale) in -128 … 127 with one scale per channel, as ONNX
Runtime's GroupQueryAttention stores them. As in ``attention``, row ``t * group + g`` is token ``t`` of head
``h * group + g``, keys are processed in splits of SPLIT, and splits are joined in order.

Both products are integer products. A query is multiplied by the keys' channel scales and quantized to 16 bits. Within
a block of BLOCK keys, softmax weights are quantized to 15 bits of the block's largest; the sum is taken over the
quantized weights, so that they still add up to one. A block of keys and values is repacked for these products once for
all rows of a part. Integer sums do not depend on the order and floats are added block by block, so a row's result does
not depend on the other rows or on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba

from edgecompress_kernels.cpu import attention as a
from edgecompress_kernels.cpu import attention_vector as w
from edgecompress_kernels.cpu import encoder_vector as e
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.abi import INT8_ROWS, SPLIT

BLOCK = 64  # keys whose weights share a scale; a divisor of SPLIT
TILES = (6, 4, 3, 2, 1)  # rows whose sums share the registers
LEVELS = 32767.0  # 15 bits and a sign
LEAST = 1.1754944e-38  # a smaller step has no finite inverse


def query_bytes(size: int) -> int:
    """Bytes of a query's int16 values and its step."""
    return 2 * size + 64


def round_query(size: int, jit: Any) -> Callable[..., None]:
    """Quantize x float32 [D] times the keys' scales [D] to int16 at ``to``, followed by the step; NaN if x has one."""

    def of_query(x: int, scales: int, to: int) -> None:
        most = v.splat_float(numba.float32(0.0))
        for at in range(0, 4 * size, 64):
            scaled = v.multiply(v.load_floats(x + at), v.load_floats(scales + at))
            v.store_floats(x + at, scaled)
            most = v.maximum(most, v.absolute(scaled))
        step = v.largest_lane(most) / numba.float32(LEVELS)
        inverse = numba.float32(0.0)
        if step >= numba.float32(LEAST):
            inverse = numba.float32(1.0) / step
        factor, low, high = (
            v.splat_float(inverse), v.splat_float(numba.float32(-LEVELS)), v.splat_float(numba.float32(LEVELS))
        )  # fmt: skip
        for i in range(size // 16):
            scaled = v.multiply(v.load_floats(x + 64 * i), factor)
            w.store_shorts(to + 32 * i, v.round_to_ints(e.lesser(e.greater(scaled, low), high)))
        v.write_float(to + 2 * size, step)

    return jit(of_query)  # type: ignore[no-any-return]


def round_row(size: int, jit: Any) -> Callable[..., None]:
    """Quantize x float32 [D] by its channels' scales [D] to int8 [D] at ``to``, as GroupQueryAttention rounds."""

    def of_row(x: int, scales: int, to: int) -> None:
        low, high = v.splat_float(numba.float32(-128.0)), v.splat_float(numba.float32(127.0))
        for i in range(size // 16):
            steps = w.divide(v.load_floats(x + 64 * i), v.load_floats(scales + 64 * i))
            v.store_bytes(to + 16 * i, v.round_to_ints(e.lesser(e.greater(steps, low), high)))

    return jit(of_row)  # type: ignore[no-any-return]


@cache
def append(size: int, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` is one token: rotate, scale and quantize its queries, write its keys and values to the cache."""
    turn_head, query, row_of = a.turn(jit, size), round_query(size, jit), round_row(size, jit)
    scratch_of = v.stack(4 * size)
    one = numba.float32(1.0)

    def kernel(p: int, part: int) -> None:
        scratch = scratch_of()
        tokens, kv_heads, group = (
            v.read_address(p + a.TOKENS),
            v.read_address(p + a.KV_HEADS),
            v.read_address(p + a.GROUP),
        )
        b, t = part // tokens, part % tokens
        rotary = v.read_address(p + a.ROTARY)
        past = v.read_address(v.read_address(p + a.PAST) + 8 * b)
        position = v.read_address(v.read_address(p + a.POSITIONS) + 8 * part)
        cos = v.read_address(p + a.COS) + position * rotary * 2
        sin = v.read_address(p + a.SIN) + position * rotary * 2
        factor = v.read_float(p + a.SCALE)
        q_in = v.read_address(p + a.Q_IN) + part * v.read_address(p + a.Q_STRIDE)
        k_in = v.read_address(p + a.K_IN) + part * v.read_address(p + a.K_STRIDE)
        v_in = v.read_address(p + a.V_IN) + part * v.read_address(p + a.V_STRIDE)
        capacity = v.read_address(p + a.CAPACITY)
        for h in range(kv_heads):
            k_scales, v_scales = (
                v.read_address(p + a.K_SCALES) + 4 * h * size,
                v.read_address(p + a.V_SCALES) + 4 * h * size,
            )
            row = ((b * kv_heads + h) * tokens + t) * group
            for g in range(group):
                turn_head(q_in + (h * group + g) * size * 4, scratch, cos, sin, rotary, factor)
                query(scratch, k_scales, v.read_address(p + a.Q) + (row + g) * query_bytes_of_size)
            place = ((b * kv_heads + h) * capacity + past + t) * size
            turn_head(k_in + h * size * 4, scratch, cos, sin, rotary, one)
            row_of(scratch, k_scales, v.read_address(p + a.KEYS) + place)
            row_of(v_in + h * size * 4, v_scales, v.read_address(p + a.VALUES) + place)

    query_bytes_of_size = query_bytes(size)
    return kernel


def lay_out(size: int, jit: Any) -> Callable[..., None]:
    """Repack ``n`` keys and values of a block, int8 [., D], for the products; ``there`` of these rows are readable."""
    on = w.layout(size)
    of_keys, of_values, of_rest = on.keys, on.values, on.rest
    chunks, wide = size // 16, size // 64
    scratch_of = v.stack(2 * BLOCK * size)

    def block(keys: int, values: int, n: int, there: int, to_keys: int, to_values: int) -> None:
        groups = (n + 15) >> 4
        if 16 * groups > there:
            scratch = scratch_of()
            for at in range(0, there * size, 16):
                w.copy_bytes(scratch + at, keys + at)
                w.copy_bytes(scratch + BLOCK * size + at, values + at)
            keys, values = scratch, scratch + BLOCK * size
        for j in range(groups):
            for c in range(chunks):
                ahead = (
                    16 * j * size + 256 * c + BLOCK * size
                )  # prefetch the next block, which is read in another order
                for line in range(0, 256, 64):
                    v.prefetch(keys + ahead + line)
                    v.prefetch(values + ahead + line)
                of_keys(keys + 16 * (j * size + c), to_keys + 16 * j * size + 256 * c)
        for t in range((n + 3) >> 2):
            for c in range(wide):
                of_values(values + 4 * t * size + 64 * c, to_values + 4 * t * size + 256 * c)
            for c in range(4 * wide, chunks):
                of_rest(values + 4 * t * size + 16 * c, to_values + 4 * t * size + 64 * c)

    return jit(block)  # type: ignore[no-any-return]


@cache
def soften(jit: Any) -> Callable[..., None]:
    """Turn scores of ``count`` rows and 16 * ``groups`` keys, starting at key ``block``, into 15-bit weights.

    Updates each row's largest score and sum of weights, at ``state``. Writes the factors of its previous sums as floats
    at ``factors``, and those of its new sums 32 bytes later.
    """
    one, levels = numba.float32(1.0), numba.float32(LEVELS)

    def of_rows(
        scores: int, weights: int, factors: int, count: int, groups: int, first_row: int, group: int, past: int,
        window: int, block: int, state: int, stride: int,
    ) -> None:  # fmt: skip
        least = v.splat_float(numba.float32(-88.0))  # its exponential is 0; avoids the difference of two infinities
        steps = v.splat_float(levels)
        for r in range(count):
            last = past + (first_row + r) // group
            first = 0
            if window > 0:
                first = max(0, last - window + 1)
            row, to = scores + 4 * BLOCK * r, weights + 2 * BLOCK * r
            best = v.splat_float(numba.float32(-a.INFINITY))
            if block >= first and block + 16 * groups - 1 <= last:
                for j in range(groups):
                    best = e.greater(best, v.load_floats(row + 64 * j))
            else:
                for j in range(groups):
                    found = v.between(v.load_floats(row + 64 * j), block + 16 * j, first, last)
                    best = e.greater(best, found)
                    v.store_floats(row + 64 * j, found)
            here = e.greatest_lane(best)
            base, total = v.splat_float(here), e.zero_ints()
            for j in range(groups):
                weight = e.power(v.subtract(v.load_floats(row + 64 * j), base))
                whole = v.round_to_ints(v.multiply(weight, steps))
                total = e.add_ints(total, whole)
                w.store_shorts(to + 32 * j, whole)
            before = v.read_float(state)
            kept, grown = one, one
            if before >= here:
                grown = v.first_lane(v.exponential(e.greater(v.splat_float(here - before), least)))
            else:
                kept = v.first_lane(v.exponential(e.greater(v.splat_float(before - here), least)))
                v.write_float(state, here)
            v.write_float(state + 4, v.read_float(state + 4) * kept + w.to_float(v.sum_int_lanes(total)) * grown)
            v.write_float(factors + 4 * r, kept)
            v.write_float(factors + 32 + 4 * r, grown)
            state += stride

    return jit(of_rows)  # type: ignore[no-any-return]


def attend_block(size: int, count: int, jit: Any) -> Callable[..., None]:
    """Attend ``count`` rows to ``n`` keys, starting at key ``block``, and add to the results, ``stride`` bytes apart.

    A result is float32 [D + 16]: weighted values in ``layout``'s order, then the largest score and the sum of weights.
    """
    on, softened = w.tile(count), soften(jit)
    zeros, dot, scale, gather = on.zeros, on.dot, on.scale, on.gather
    q_stride, fours, chunks = query_bytes(size), size // 4, size // 16
    scores_of, weights_of, factors_of = v.stack(4 * BLOCK * count), v.stack(2 * BLOCK * count), v.stack(64)

    def attend(
        q: int, keys: int, values: int, first_row: int, group: int, past: int, window: int, block: int, n: int,
        result: int, stride: int,
    ) -> None:  # fmt: skip
        scores, weights, factors = scores_of(), weights_of(), factors_of()
        groups = (n + 15) >> 4
        for j in range(groups):
            sums = zeros()
            for i in range(fours):
                sums = dot(sums, keys + 16 * j * size + 64 * i, q + 8 * i, q_stride)
            scale(sums, q + 2 * size, q_stride, scores + 64 * j, 4 * BLOCK)
        state = result + 4 * size
        softened(scores, weights, factors, count, groups, first_row, group, past, window, block, state, stride)
        for c in range(chunks):
            sums = zeros()
            for t in range((n + 3) >> 2):
                sums = dot(sums, values + 4 * t * size + 64 * c, weights + 8 * t, 2 * BLOCK)
            gather(sums, factors, factors + 32, result + 64 * c, stride)

    return jit(attend)  # type: ignore[no-any-return]


def finishing(size: int, jit: Any) -> Callable[..., None]:
    """Divide a row's result by its sum of weights, times the values' scales, in channel order; NaN for a NaN query."""
    wide = size // 64

    def finish(result: int, q: int, scales: int, y: int) -> None:
        total = v.read_float(result + 4 * size + 4)
        inverse = numba.float32(0.0)  # no key was seen: a row of zeros, as ONNX Runtime gives it
        if total > inverse:
            inverse = numba.float32(1.0) / total
        factor = v.splat_float(inverse + numba.float32(0.0) * v.read_float(q + 2 * size))
        for c in range(wide):
            for i in range(4):
                at = 256 * c + 64 * i
                found = v.multiply(w.load_quarters(result + 256 * c + 16 * i), factor)
                v.store_floats(y + at, v.multiply(found, v.load_floats(scales + at)))
        for at in range(256 * wide, 4 * size, 64):
            found = v.multiply(v.load_floats(result + at), factor)
            v.store_floats(y + at, v.multiply(found, v.load_floats(scales + at)))

    return jit(finish)  # type: ignore[no-any-return]


@cache
def attend(size: int, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` is some rows of a KV head, over one split of the keys or over all keys."""
    six, four, three, two, single = (attend_block(size, count, jit) for count in TILES)
    lay, finish, join = lay_out(size, jit), finishing(size, jit), a.joining(size, jit)[0]
    result_bytes, q_stride = 4 * size + 64, query_bytes(size)
    results_of, others_of = v.stack(INT8_ROWS * result_bytes), v.stack(INT8_ROWS * result_bytes)
    keys_of, values_of = v.stack(BLOCK * size), v.stack(BLOCK * size)
    nothing = numba.float32(0.0)

    def kernel(p: int, part: int) -> None:
        mine, others, block_keys, block_values = results_of(), others_of(), keys_of(), values_of()
        tokens, kv_heads, group = (
            v.read_address(p + a.TOKENS),
            v.read_address(p + a.KV_HEADS),
            v.read_address(p + a.GROUP),
        )
        split_parts, row_parts = v.read_address(p + a.SPLIT_PARTS), v.read_address(p + a.ROW_PARTS)
        splits, each = v.read_address(p + a.SPLITS), v.read_address(p + a.ROWS_PER_PART)
        split, rest = part % split_parts, part // split_parts
        row_part, head = rest % row_parts, rest // row_parts
        b, h = head // kv_heads, head % kv_heads
        rows = tokens * group
        past = v.read_address(v.read_address(p + a.PAST) + 8 * b)
        window, capacity = v.read_address(p + a.WINDOW), v.read_address(p + a.CAPACITY)
        keys = v.read_address(p + a.KEYS) + head * capacity * size
        values = v.read_address(p + a.VALUES) + head * capacity * size
        first_row, end_row = row_part * each, min(rows, (row_part + 1) * each)
        count = end_row - first_row
        q = v.read_address(p + a.Q) + (head * rows + first_row) * q_stride
        visible = past + (end_row - 1) // group + 1
        hidden = 0
        if window > 0:
            hidden = max(0, past + first_row // group - window + 1)
        first_split, last_split = split, split + 1
        if split_parts == 1:
            last_split = splits
        for s in range(first_split, last_split):
            result, stride = mine, result_bytes
            if split_parts > 1:
                result = v.read_address(p + a.PARTIALS) + ((head * rows + first_row) * splits + s) * result_bytes
                stride = splits * result_bytes
            elif s > 0:
                result = others
            for r in range(count):
                for at in range(0, result_bytes, 64):
                    v.store_floats(result + r * stride + at, v.splat_float(nothing))
                v.write_float(result + r * stride + 4 * size, numba.float32(-a.INFINITY))
            end = min((s + 1) * SPLIT, visible)
            for block in range(max(s * SPLIT, hidden // BLOCK * BLOCK), end, BLOCK):
                n = min(BLOCK, end - block)
                lay(
                    keys + block * size,
                    values + block * size,
                    n,
                    min(BLOCK, capacity - block),
                    block_keys,
                    block_values,
                )
                row = 0
                while row < count:
                    left = count - row
                    query, here, number = q + row * q_stride, result + row * stride, first_row + row
                    if left >= 9 or left == 6:
                        six(query, block_keys, block_values, number, group, past, window, block, n, here, stride)
                        row += 6
                    elif left >= 7 or left == 4:
                        four(query, block_keys, block_values, number, group, past, window, block, n, here, stride)
                        row += 4
                    elif left >= 3:
                        three(query, block_keys, block_values, number, group, past, window, block, n, here, stride)
                        row += 3
                    elif left == 2:
                        two(query, block_keys, block_values, number, group, past, window, block, n, here, stride)
                        row += 2
                    else:
                        single(query, block_keys, block_values, number, group, past, window, block, n, here, stride)
                        row += 1
            if split_parts == 1 and s > 0:
                for r in range(count):
                    join(mine + r * result_bytes, others + r * result_bytes)
        if split_parts == 1:
            scales = v.read_address(p + a.V_SCALES) + 4 * h * size
            for r in range(count):
                t, g = (first_row + r) // group, (first_row + r) % group
                where = ((b * tokens + t) * kv_heads * group + h * group + g) * size * 4
                finish(mine + r * result_bytes, q + r * q_stride, scales, v.read_address(p + a.Y) + where)

    return kernel


@cache
def combine(size: int, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` is a KV head of a text: join its rows' splits in order, into y."""
    join, finish = a.joining(size, jit)[0], finishing(size, jit)
    result_bytes, q_stride = 4 * size + 64, query_bytes(size)

    def kernel(p: int, part: int) -> None:
        tokens, kv_heads, group = (
            v.read_address(p + a.TOKENS),
            v.read_address(p + a.KV_HEADS),
            v.read_address(p + a.GROUP),
        )
        splits = v.read_address(p + a.SPLITS)
        rows = tokens * group
        b, h = part // kv_heads, part % kv_heads
        scales = v.read_address(p + a.V_SCALES) + 4 * h * size
        for row in range(rows):
            result = v.read_address(p + a.PARTIALS) + (part * rows + row) * splits * result_bytes
            for s in range(1, splits):
                join(result, result + s * result_bytes)
            t, g = row // group, row % group
            where = ((b * tokens + t) * kv_heads * group + h * group + g) * size * 4
            finish(
                result,
                v.read_address(p + a.Q) + (part * rows + row) * q_stride,
                scales,
                v.read_address(p + a.Y) + where,
            )

    return kernel
