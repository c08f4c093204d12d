"""Attention of many new tokens on Hopper, in Gluon: one warp copies tiles, two warpgroups of four warps compute.

(FlashAttention-3: Shah and others, arXiv 2407.08608.) The copy engine copies tiles of keys and values into a ring of
buffers, and the asynchronous matrix units multiply them. While one block's weights are multiplied by its values, the
next block's softmax is computed. The grid has as many programs as the device runs at once; each processes tiles of
2 * ROWS queries in turn, and copies for the next tile overlap with the end of the current one.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Triton 3.6 and 3.9 have different names for these
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
bring = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
LOG2_E = gl.constexpr(1.4426950408889634)
ROWS = gl.constexpr(64)  # queries per warpgroup, as many as one instruction multiplies
WARPGROUPS = gl.constexpr(2)
HALF_BYTES = gl.constexpr(2)


@gluon.jit
def find(i_tile, starts, sizes, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Return a tile's query block, head and text, their offsets, and its number of visible key blocks (-1: no query).

    Heads are processed in sections whose keys and values fit in the device's cache; within a section, if causal, the
    longest rows start first.
    """
    q_starts, k_starts = starts
    heads, texts, blocks, _group, section = sizes
    i_section = i_tile // (section * blocks)
    of_section = gl.minimum(section, heads * texts - i_section * section)
    rest = i_tile - i_section * section * blocks
    i_block = rest // of_section
    i_pair = i_section * section + rest % of_section
    if CAUSAL:
        i_block = blocks - 1 - i_block
    i_text, i_head = i_pair // heads, i_pair % heads
    q_first, k_first = gl.load(q_starts + i_text), gl.load(k_starts + i_text)
    tokens, keys = gl.load(q_starts + i_text + 1) - q_first, gl.load(k_starts + i_text + 1) - k_first
    end = keys
    if CAUSAL:
        end = gl.minimum(keys, keys - tokens + (i_block + 1) * WARPGROUPS * ROWS)
    key_blocks = gl.maximum(0, (end + BLOCK_N - 1) // BLOCK_N)
    key_blocks = gl.where(i_block * WARPGROUPS * ROWS < tokens, key_blocks, -1)
    return i_block * WARPGROUPS * ROWS, i_head, q_first, tokens, k_first, keys, key_blocks


@gluon.jit
def produce(
    maps, barriers, buffers, starts, sizes, WIDTH: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
):  # fmt: skip
    """Copy every tile's queries, and its keys and values from the last block to the first."""
    q_map, k_map, v_map = maps
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    q_buffer, k_buffers, v_buffers = buffers
    heads, texts, blocks, group, _section = sizes
    i_kv, i_used = 0, 0  # key blocks, and tiles with key blocks, so far
    for i_tile in range(gl.program_id(0), blocks * heads * texts, gl.num_programs(0)):
        row, i_head, q_first, _tokens, k_first, _keys, key_blocks = find(i_tile, starts, sizes, BLOCK_N, CAUSAL)
        if key_blocks > 0:
            for i in gl.static_range(WARPGROUPS):
                mbarrier.wait(q_empty.index(i), (i_used & 1) ^ 1)
                mbarrier.expect(q_full.index(i), ROWS * WIDTH * HALF_BYTES)
                bring(q_map, [i_head, q_first + row + i * ROWS, 0], q_full.index(i), q_buffer.index(i))
            i_used += 1
            for i in range(0, key_blocks):
                stage, phase = i_kv % STAGES, (i_kv // STAGES) & 1
                first = k_first + (key_blocks - 1 - i) * BLOCK_N
                mbarrier.wait(k_empty.index(stage), phase ^ 1)
                mbarrier.expect(k_full.index(stage), BLOCK_N * WIDTH * HALF_BYTES)
                bring(k_map, [i_head // group, first, 0], k_full.index(stage), k_buffers.index(stage))
                mbarrier.wait(v_empty.index(stage), phase ^ 1)
                mbarrier.expect(v_full.index(stage), BLOCK_N * WIDTH * HALF_BYTES)
                bring(v_map, [i_head // group, first, 0], v_full.index(stage), v_buffers.index(stage))
                i_kv += 1


@gluon.jit
def multiply_keys(q, k_buffers, stage, WIDTH: gl.constexpr, BLOCK_N: gl.constexpr, s_layout: gl.constexpr):
    """Start the asynchronous product of a block's raw scores [ROWS, BLOCK_N]."""
    keys = k_buffers.index(stage).reshape([BLOCK_N, WIDTH]).permute((1, 0))
    return warpgroup_mma(q, keys, gl.zeros([ROWS, BLOCK_N], gl.float32, s_layout), use_acc=False, is_async=True)


@gluon.jit
def weigh(
    b_scores, largest, total, position, first_key, keys, scale, BLOCK_N: gl.constexpr, MASKED: gl.constexpr,
    CAUSAL: gl.constexpr, FIRST: gl.constexpr, s_layout: gl.constexpr,
):  # fmt: skip
    """Return the weights of raw scores, the running largest score and sum, and the factor for previous sums.

    ``total`` [ROWS, 4]: each thread's part of the sum, so that iterations need no shuffles. ``scale`` is for base 2.
    """
    if MASKED:
        o_keys = first_key + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, s_layout))
        seen = (o_keys < keys)[None, :]
        if CAUSAL:
            seen = seen & (position[:, None] >= o_keys[None, :])
        b_scores = gl.where(seen, b_scores, float("-inf"))
    new = gl.maximum(largest, gl.max(b_scores, 1) * scale)
    safe = new
    if MASKED:
        safe = gl.where(new == float("-inf"), 0.0, new)
    weights = gl.exp2(b_scores * scale - safe[:, None])
    factor = gl.exp2(largest - safe)
    sums = gl.sum(gl.sum(gl.reshape(weights, [ROWS, BLOCK_N // 8, 4, 2]), 3), 1)
    if FIRST:  # noqa: SIM108 -- Gluon resolves this `if` when it compiles
        total = sums
    else:
        total = total * gl.convert_layout(factor, gl.SliceLayout(1, sums.type.layout))[:, None] + sums
    return weights, new, total, factor


@gluon.jit
def take_block(
    b_sums, b_weights, largest, total, q, buffers, barriers, i_kv, position, first_key, keys, scale,
    WIDTH: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr, CAUSAL: gl.constexpr,
    s_layout: gl.constexpr, o_layout: gl.constexpr, p_layout: gl.constexpr,
):  # fmt: skip
    """Compute scores and weights of block ``i_kv`` while the previous block is multiplied by its values."""
    _q_full, _q_empty, k_full, k_empty, v_full, v_empty = barriers
    _q_buffer, k_buffers, v_buffers = buffers
    stage, before = i_kv % STAGES, (i_kv - 1) % STAGES
    mbarrier.wait(k_full.index(stage), (i_kv // STAGES) & 1)
    b_scores = multiply_keys(q, k_buffers, stage, WIDTH, BLOCK_N, s_layout)
    mbarrier.wait(v_full.index(before), ((i_kv - 1) // STAGES) & 1)
    values = v_buffers.index(before).reshape([BLOCK_N, WIDTH])
    b_sums = warpgroup_mma(b_weights, values, b_sums, is_async=True)
    b_scores = warpgroup_mma_wait(1, deps=(b_scores,))
    mbarrier.arrive(k_empty.index(stage), count=1)
    weights, largest, total, factor = weigh(
        b_scores, largest, total, position, first_key, keys, scale, BLOCK_N, MASKED, CAUSAL, False, s_layout
    )
    # Otherwise ptxas waits for the values first, and nothing overlaps. This depends on the sum of all weights, and
    # ptxas cannot know that the mask never changes: no arithmetic gives a NaN with that payload.
    total = gl.inline_asm_elementwise(
        """
        {
        .reg .pred never;
        .reg .b32 lanes;
        setp.eq.b32 never, $1, 0xffffabcd;
        selp.b32 lanes, 0xfffffffe, 0xffffffff, never;
        bar.warp.sync lanes;
        mov.b32 $0, $1;
        }
        """,
        "=r,r",
        [total],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )
    b_sums = warpgroup_mma_wait(0, deps=(b_sums,))
    mbarrier.arrive(v_empty.index(before), count=1)
    b_sums = b_sums * gl.convert_layout(factor, gl.SliceLayout(1, o_layout))[:, None]
    return b_sums, gl.convert_layout(weights.to(q.dtype), p_layout), largest, total


@gluon.jit
def clear_rows(buffer, count, WIDTH: gl.constexpr, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """Write zeros after a text's last value. Another text's values are there; their weight is 0, but 0 * NaN is NaN.

    Both warpgroups write the same zeros.
    """
    values = buffer.reshape([BLOCK_N, WIDTH])
    block = values.load(layout)
    m_rows = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, layout)) < count
    values.store(gl.where(m_rows[:, None], block, gl.zeros_like(block)))
    fence_async_shared()
    barrier()


@gluon.jit
def consume(
    out, barriers, buffers, starts, sizes, strides, scale, HEAD: gl.constexpr, WIDTH: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr, MINE: gl.constexpr,
):  # fmt: skip
    """Warpgroup MINE: compute its ROWS queries of every tile."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    q_buffer, k_buffers, v_buffers = buffers
    heads, texts, blocks, _group, _section = sizes
    out_token, out_head = strides
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    dense: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    q = q_buffer.index(MINE).reshape([ROWS, WIDTH])
    i_kv, i_used = 0, 0
    for i_tile in range(gl.program_id(0), blocks * heads * texts, gl.num_programs(0)):
        row, i_head, q_first, tokens, _k_first, keys, key_blocks = find(i_tile, starts, sizes, BLOCK_N, CAUSAL)
        row += MINE * ROWS
        if key_blocks >= 0:
            b_sums = gl.zeros([ROWS, WIDTH], gl.float32, o_layout)
            total = gl.zeros([ROWS], gl.float32, row_layout)
            if key_blocks > 0:
                position = keys - tokens + row + gl.arange(0, ROWS, layout=row_layout)
                stage, phase = i_kv % STAGES, (i_kv // STAGES) & 1
                mbarrier.wait(q_full.index(MINE), i_used & 1)
                mbarrier.wait(k_full.index(stage), phase)
                b_scores = multiply_keys(q, k_buffers, stage, WIDTH, BLOCK_N, s_layout)
                b_scores = warpgroup_mma_wait(0, deps=(b_scores,))
                mbarrier.arrive(k_empty.index(stage), count=1)
                largest = gl.full([ROWS], float("-inf"), gl.float32, row_layout)
                last = (key_blocks - 1) * BLOCK_N
                weights, largest, parts, _factor = weigh(
                    b_scores, largest, total, position, last, keys, scale, BLOCK_N, True, CAUSAL, True, s_layout
                )
                b_weights = gl.convert_layout(weights.to(q.dtype), p_layout)
                if keys - last < BLOCK_N:
                    mbarrier.wait(v_full.index(stage), phase)
                    clear_rows(v_buffers.index(stage), keys - last, WIDTH, BLOCK_N, dense)
                whole = keys // BLOCK_N  # blocks that are fully visible to all rows
                if CAUSAL:
                    whole = gl.minimum(whole, gl.maximum(0, keys - tokens + row + 1) // BLOCK_N)
                whole = gl.minimum(whole, key_blocks - 1)
                i_kv += 1
                for i in range(0, key_blocks - 1 - whole):
                    b_sums, b_weights, largest, parts = take_block(
                        b_sums, b_weights, largest, parts, q, buffers, barriers, i_kv, position,
                        (key_blocks - 2 - i) * BLOCK_N, keys, scale,
                        WIDTH, BLOCK_N, STAGES, True, CAUSAL, s_layout, o_layout, p_layout,
                    )  # fmt: skip
                    i_kv += 1
                for _ in range(0, whole):
                    b_sums, b_weights, largest, parts = take_block(
                        b_sums, b_weights, largest, parts, q, buffers, barriers, i_kv, position, 0, keys, scale,
                        WIDTH, BLOCK_N, STAGES, False, CAUSAL, s_layout, o_layout, p_layout,
                    )  # fmt: skip
                    i_kv += 1
                mbarrier.arrive(q_empty.index(MINE), count=1)
                i_used += 1
                stage, phase = (i_kv - 1) % STAGES, ((i_kv - 1) // STAGES) & 1
                mbarrier.wait(v_full.index(stage), phase)
                values = v_buffers.index(stage).reshape([BLOCK_N, WIDTH])
                b_sums = warpgroup_mma(b_weights, values, b_sums, is_async=True)
                b_sums = warpgroup_mma_wait(0, deps=(b_sums,))
                mbarrier.arrive(v_empty.index(stage), count=1)
                total = gl.convert_layout(gl.sum(parts, 1), row_layout)
            inverse = gl.where(total > 0.0, 1.0 / gl.where(total > 0.0, total, 1.0), 0.0)
            b_out = b_sums * gl.convert_layout(inverse, gl.SliceLayout(1, o_layout))[:, None]
            b_out = gl.convert_layout(b_out.to(q.dtype), dense)
            o_r = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, dense))
            o_d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, dense))
            p_out = out + q_first.to(gl.int64) * out_token + i_head * out_head
            p_out += o_r.to(gl.int64)[:, None] * out_token + o_d[None, :]
            gl.store(p_out, b_out, mask=(o_r < tokens)[:, None] & (o_d < HEAD)[None, :])


@gluon.jit
def prefill_hopper_kernel(
    q,  # maps of [heads, tokens, D]: a box is ROWS queries, or BLOCK_N keys or values, of one head
    k,
    v,
    out,  # [tokens, Hq, D]
    q_starts,  # int32 [B + 1]
    k_starts,
    out_token,
    out_head,
    heads,
    texts,
    blocks,  # blocks of 2 * ROWS queries in the longest text
    group,
    section,  # heads of texts per section
    scale,
    HEAD: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """Tiles of 2 * ROWS queries of one head of one text; any number of programs.

    A text's last query is at its last key's position.
    """
    q_buffer = gl.allocate_shared_memory(q.dtype, [WARPGROUPS, 1, ROWS, WIDTH], q.layout)
    k_buffers = gl.allocate_shared_memory(q.dtype, [STAGES, 1, BLOCK_N, WIDTH], k.layout)
    v_buffers = gl.allocate_shared_memory(q.dtype, [STAGES, 1, BLOCK_N, WIDTH], v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [WARPGROUPS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [WARPGROUPS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(WARPGROUPS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=WARPGROUPS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=WARPGROUPS)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    buffers = (q_buffer, k_buffers, v_buffers)
    starts, sizes = (q_starts, k_starts), (heads, texts, blocks, group, section)
    strides = (out_token.to(gl.int64), out_head)
    base_two = scale * LOG2_E
    gl.warp_specialize(
        [
            (
                consume,
                (out, barriers, buffers, starts, sizes, strides, base_two, HEAD, WIDTH, BLOCK_N, STAGES, CAUSAL, 0),
            ),
            (
                consume,
                (out, barriers, buffers, starts, sizes, strides, base_two, HEAD, WIDTH, BLOCK_N, STAGES, CAUSAL, 1),
            ),
            (produce, ((q, k, v), barriers, buffers, starts, sizes, WIDTH, BLOCK_N, STAGES, CAUSAL)),
        ],
        [4, 1],
        [240, 24],
    )
