"""Grouped-query attention with an in-place KV cache: rotary embedding, append and softmax in one operator.

Keys and values are float32 [B, Hk, capacity, D]. The queries that share a KV head, of all new tokens, are rows of one
small matrix: row ``t * group + g`` is token ``t`` of head ``h * group + g``. Keys are processed in splits of SPLIT,
starting at the first key, each with a separate softmax, and splits are joined in order. So a row's result is bitwise
the same alone or with other rows, in one thread or in many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba

from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.abi import ATTENTION_PARAMETERS, SPLIT
from edgecompress_kernels.cpu.vector_rows import panel

BLOCK = 32  # keys whose scores are on the stack; a divisor of SPLIT
TILES = (8, 6, 4, 2, 1)  # rows computed together
SLOTS = ATTENTION_PARAMETERS.names
(
    Q_IN, K_IN, V_IN, Q_STRIDE, K_STRIDE, V_STRIDE, PAST, POSITIONS, COS, SIN, ROTARY, Q, KEYS, VALUES, PARTIALS, Y,
    BATCH, TOKENS, KV_HEADS, GROUP, CAPACITY, WINDOW, SCALE, ROWS_PER_PART, ROW_PARTS, SPLITS, SPLIT_PARTS,
    K_SCALES, V_SCALES,
) = ATTENTION_PARAMETERS.offsets.values()  # fmt: skip
INFINITY = float("inf")


def turn(jit: Any, size: int) -> Callable[..., None]:
    """Rotate the first ``rotary`` values of one head, float32 [D] (non-interleaved), and multiply all by ``factor``."""

    def turn_head(source: int, target: int, cos: int, sin: int, rotary: int, factor: float) -> None:
        scale = v.splat_float(factor)
        half = rotary // 2
        for at in range(0, half * 4, 64):
            a, b = v.load_floats(source + at), v.load_floats(source + at + half * 4)
            c, s = v.load_floats(cos + at), v.load_floats(sin + at)
            v.store_floats(target + at, v.multiply(v.subtract(v.multiply(a, c), v.multiply(b, s)), scale))
            v.store_floats(target + at + half * 4, v.multiply(v.add_floats(v.multiply(b, c), v.multiply(a, s)), scale))
        for at in range(rotary * 4, size * 4, 64):
            v.store_floats(target + at, v.multiply(v.load_floats(source + at), scale))

    return jit(turn_head)  # type: ignore[no-any-return]


@cache
def append(size: int, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` is one token: rotate and scale its queries into ``q``, write its keys and values to the cache."""
    turn_head = turn(jit, size)
    one = numba.float32(1.0)

    def kernel(p: int, part: int) -> None:
        tokens, kv_heads, group = v.read_address(p + TOKENS), v.read_address(p + KV_HEADS), v.read_address(p + GROUP)
        b, t = part // tokens, part % tokens
        rotary = v.read_address(p + ROTARY)
        past = v.read_address(v.read_address(p + PAST) + 8 * b)
        position = v.read_address(v.read_address(p + POSITIONS) + 8 * part)
        cos = v.read_address(p + COS) + position * rotary * 2
        sin = v.read_address(p + SIN) + position * rotary * 2
        factor = v.read_float(p + SCALE)
        q_in = v.read_address(p + Q_IN) + part * v.read_address(p + Q_STRIDE)
        k_in = v.read_address(p + K_IN) + part * v.read_address(p + K_STRIDE)
        v_in = v.read_address(p + V_IN) + part * v.read_address(p + V_STRIDE)
        capacity = v.read_address(p + CAPACITY)
        for h in range(kv_heads):
            row = ((b * kv_heads + h) * tokens + t) * group
            for g in range(group):
                target = v.read_address(p + Q) + (row + g) * size * 4
                turn_head(q_in + (h * group + g) * size * 4, target, cos, sin, rotary, factor)
            place = ((b * kv_heads + h) * capacity + past + t) * size * 4
            turn_head(k_in + h * size * 4, v.read_address(p + KEYS) + place, cos, sin, rotary, one)
            for at in range(0, size * 4, 64):
                v.store_floats(v.read_address(p + VALUES) + place + at, v.load_floats(v_in + h * size * 4 + at))

    return kernel


def attend_split(size: int, count: int, vectors: int, jit: Any) -> Callable[..., None]:
    """Attend ``count`` rows at ``q`` to keys first_key to last_key.

    A row's result is float32 [D + 16]: weighted values, then the largest score and the sum of exponentials.
    ``vectors``: vector registers of the CPU; half of them hold sums.
    """
    # Two rows and whole keys at a time, so that values are read in order and the hardware prefetches them.
    pair = min(count, 2)
    width = max(w for w in range(1, vectors // 4 + 1) if (size // 16) % w == 0)
    on = panel(pair, width)
    load, grow, weigh, keep = on.load, on.grow, on.weigh, on.keep
    dots = v.sixteen_dots(size, vectors // 2)
    scores_of, factors_of = v.stack(count * BLOCK * 4), v.stack(64)
    result_stride = (size + 16) * 4
    zero = numba.float32(0.0)

    def attend(
        q: int,
        keys: int,
        values: int,
        first_row: int,
        group: int,
        past: int,
        window: int,
        begin: int,
        end: int,
        result: int,
    ) -> None:
        scores, factors = scores_of(), factors_of()
        for r in range(count):
            for at in range(0, size * 4, 64):
                v.store_floats(result + r * result_stride + at, v.splat_float(zero))
            v.write_float(result + r * result_stride + size * 4, numba.float32(-INFINITY))
            v.write_float(result + r * result_stride + size * 4 + 4, zero)
        for block in range(begin, end, BLOCK):
            n = min(BLOCK, end - block)
            for r in range(count):
                last = past + (first_row + r) // group
                first = 0
                if window > 0:
                    first = max(0, last - window + 1)
                best = v.splat_float(numba.float32(-INFINITY))
                for j in range(0, n, 16):
                    found = dots(q + r * size * 4, keys + (block + j) * size * 4, size * 4, n - j - 1)
                    found = v.between(found, block + j, first, last)
                    best = v.maximum(best, found)
                    v.store_floats(scores + (r * BLOCK + j) * 4, found)
                state = result + r * result_stride + size * 4
                old = v.read_float(state)
                new = max(old, v.largest_lane(best))
                factor = numba.float32(1.0)
                total = v.splat_float(zero)
                if new == numba.float32(-INFINITY):
                    for j in range(0, n, 16):
                        v.store_floats(scores + (r * BLOCK + j) * 4, total)
                else:
                    largest = v.splat_float(new)
                    factor = v.first_lane(v.exponential(v.splat_float(old - new)))
                    for j in range(0, n, 16):
                        weight = v.exponential(v.subtract(v.load_floats(scores + (r * BLOCK + j) * 4), largest))
                        total = v.add_floats(total, weight)
                        v.store_floats(scores + (r * BLOCK + j) * 4, weight)
                v.write_float(state, new)
                v.write_float(state + 4, v.read_float(state + 4) * factor + v.sum_lanes(total))
                v.write_float(factors + 4 * r, factor)
            for r in range(0, count, pair):
                for at in range(0, size * 4, 64 * width):
                    place = result + r * result_stride + at
                    sums = grow(load(place, result_stride), factors + 4 * r, 4)
                    for j in range(n):
                        here = (block + j) * size * 4 + at
                        if r == pair:  # prefetch the next block in order: the first pair's keys, then its values
                            for i in range(width):
                                v.prefetch(keys + BLOCK * size * 4 + here + 64 * i)
                        if r == 2 * pair:
                            for i in range(width):
                                v.prefetch(values + BLOCK * size * 4 + here + 64 * i)
                        sums = weigh(sums, values + here, scores + (r * BLOCK + j) * 4, BLOCK * 4)
                    keep(sums, place, result_stride)

    return jit(attend)  # type: ignore[no-any-return]


def joining(size: int, jit: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return (join, finish): merge a row's result of a later split into that of earlier ones; divide by the sum."""
    zero = numba.float32(0.0)

    def join(into: int, other: int) -> None:
        a, b = v.read_float(into + size * 4), v.read_float(other + size * 4)
        new = max(a, b)
        if new != numba.float32(-INFINITY):
            first = v.first_lane(v.exponential(v.splat_float(a - new)))
            second = v.first_lane(v.exponential(v.splat_float(b - new)))
            for at in range(0, size * 4, 64):
                scaled = v.multiply(v.load_floats(into + at), v.splat_float(first))
                v.store_floats(
                    into + at, v.fused_multiply_add(v.load_floats(other + at), v.splat_float(second), scaled)
                )
            total = v.read_float(into + size * 4 + 4) * first + v.read_float(other + size * 4 + 4) * second
            v.write_float(into + size * 4 + 4, total)
            v.write_float(into + size * 4, new)

    def finish(result: int, y: int) -> None:
        total = v.read_float(result + size * 4 + 4)
        inverse = zero  # no visible key: a row of zeros, as in ONNX Runtime
        if total != zero:
            inverse = numba.float32(1.0) / total
        for at in range(0, size * 4, 64):
            v.store_floats(y + at, v.multiply(v.load_floats(result + at), v.splat_float(inverse)))

    return jit(join), jit(finish)


@cache
def attend(size: int, vectors: int, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` is some rows of a KV head, over one split of the keys or over all keys."""
    eight, six, four, two, one = (attend_split(size, count, vectors, jit) for count in TILES)
    join, finish = joining(size, jit)
    result_stride = (size + 16) * 4
    results_of, others_of = v.stack(8 * result_stride), v.stack(8 * result_stride)

    def kernel(p: int, part: int) -> None:
        mine, others = results_of(), others_of()
        tokens, kv_heads, group = v.read_address(p + TOKENS), v.read_address(p + KV_HEADS), v.read_address(p + GROUP)
        split_parts, row_parts = v.read_address(p + SPLIT_PARTS), v.read_address(p + ROW_PARTS)
        splits, each = v.read_address(p + SPLITS), v.read_address(p + ROWS_PER_PART)
        split, rest = part % split_parts, part // split_parts
        row_part, head = rest % row_parts, rest // row_parts
        b, h = head // kv_heads, head % kv_heads
        rows = tokens * group
        past = v.read_address(v.read_address(p + PAST) + 8 * b)
        window = v.read_address(p + WINDOW)
        place = head * v.read_address(p + CAPACITY) * size * 4
        keys, values = v.read_address(p + KEYS) + place, v.read_address(p + VALUES) + place
        row, end_row = row_part * each, min(rows, (row_part + 1) * each)
        while row < end_row:
            left = end_row - row
            count = 8
            if left < 8:
                count = 6 if left >= 6 else (4 if left >= 4 else (2 if left >= 2 else 1))
            q = v.read_address(p + Q) + (head * rows + row) * size * 4
            visible = past + (row + count - 1) // group + 1
            hidden = 0
            if window > 0:
                hidden = max(0, past + row // group - window + 1)
            first_split, last_split = split, split + 1
            if split_parts == 1:
                last_split = splits
            partials = v.read_address(p + PARTIALS) + ((head * rows + row) * splits) * result_stride
            for s in range(first_split, last_split):
                begin, end = s * SPLIT, min((s + 1) * SPLIT, visible)
                result = mine
                if split_parts == 1 and s > 0:
                    result = others
                if end <= hidden:
                    end = begin  # before the windows of all rows
                if count == 8:
                    eight(q, keys, values, row, group, past, window, begin, end, result)
                elif count == 6:
                    six(q, keys, values, row, group, past, window, begin, end, result)
                elif count == 4:
                    four(q, keys, values, row, group, past, window, begin, end, result)
                elif count == 2:
                    two(q, keys, values, row, group, past, window, begin, end, result)
                else:
                    one(q, keys, values, row, group, past, window, begin, end, result)
                for r in range(count):
                    if split_parts > 1:
                        target = partials + (r * splits + s) * result_stride
                        for at in range(0, result_stride, 64):
                            v.store_floats(target + at, v.load_floats(mine + r * result_stride + at))
                    elif s > 0:
                        join(mine + r * result_stride, others + r * result_stride)
            if split_parts == 1:
                for r in range(count):
                    t, g = (row + r) // group, (row + r) % group
                    where = ((b * tokens + t) * kv_heads * group + h * group + g) * size * 4
                    finish(mine + r * result_stride, v.read_address(p + Y) + where)
            row += count

    return kernel


@cache
def combine(size: int, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` is a KV head of a text: join its rows' splits in order, into y."""
    join, finish = joining(size, jit)
    result_stride = (size + 16) * 4

    def kernel(p: int, part: int) -> None:
        tokens, kv_heads, group = v.read_address(p + TOKENS), v.read_address(p + KV_HEADS), v.read_address(p + GROUP)
        splits = v.read_address(p + SPLITS)
        rows = tokens * group
        b, h = part // kv_heads, part % kv_heads
        for row in range(rows):
            result = v.read_address(p + PARTIALS) + (part * rows + row) * splits * result_stride
            for s in range(1, splits):
                join(result, result + s * result_stride)
            t, g = row // group, row % group
            where = ((b * tokens + t) * kv_heads * group + h * group + g) * size * 4
            finish(result, v.read_address(p + Y) + where)

    return kernel
