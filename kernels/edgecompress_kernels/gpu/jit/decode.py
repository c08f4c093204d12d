"""Attention of one or a few new tokens over a KV cache: keys are split among programs, and the last program joins.

(Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023.) The queries that share a KV head, of all new tokens, are rows of
one small matrix: row ``t * group + g`` is token ``t`` of head ``h * group + g``.
"""

import triton
import triton.language as tl

from edgecompress_kernels.gpu.jit.softmax import base_two, load_rows, weigh


@triton.jit
def halves(b_x, PACKED: tl.constexpr, HELD: tl.constexpr):
    """Convert a block of int8 to float16. PACKED: four at a time, by placing bytes in mantissas; else by a cast.

    HELD: keep the layout of the load. Otherwise the compiler converts after a shuffle of single bytes.
    """
    if PACKED:
        b_x = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 bytes, low, high, offset;
            mov.b32 offset, 0x64806480;
            xor.b32 bytes, $2, 0x80808080;
            prmt.b32 low, bytes, 0x64646464, 0x4140;
            prmt.b32 high, bytes, 0x64646464, 0x4342;
            sub.f16x2 $0, low, offset;
            sub.f16x2 $1, high, offset;
            }
            """,
            "=r,=r,r",
            [b_x],
            dtype=tl.float16,
            is_pure=not HELD,
            pack=4,
        )
    else:
        b_x = b_x.to(tl.float16)
    return b_x


@triton.jit
def attend_cache(
    b_sums,  # [GROUPS, BLOCK_M, WIDTH]
    largest,  # [GROUPS, BLOCK_M]
    total,
    b_q,  # [GROUPS, BLOCK_M, WIDTH]; if INTEGER, the queries' int8 part and, 1/254 of it, the next
    b_low,
    row_scale,  # [BLOCK_M]: scale of raw products
    p_k,
    p_v,
    o_k,  # [GROUPS, keys per group, WIDTH]: a block's rows
    o_v,
    k_stride,  # int64: offsets in a long cache exceed 2^31
    v_stride,
    o_n,  # [GROUPS, keys per group]
    m_width,
    position,  # [BLOCK_M]: each row's position among the keys
    first,
    end,
    window,
    soft_cap,
    BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
    HALVED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PACKED: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """Process keys ``first`` to ``end``. Not MASKED: all of them exist and are visible to all rows."""
    for i_key in range(first, end, BLOCK_N):
        o_keys = i_key + o_n
        b_k = load_rows(p_k + i_key * k_stride + o_k, o_keys < end, m_width, MASKED, PADDED)
        if INTEGER:
            b_scores = tl.dot(b_q, tl.permute(b_k, (0, 2, 1))).to(tl.float32)
            b_scores += tl.dot(b_low, tl.permute(b_k, (0, 2, 1))).to(tl.float32) * (1.0 / 254.0)
        else:
            b_k = halves(b_k, PACKED, False) if HALVED else b_k.to(b_q.dtype)
            b_scores = tl.dot(b_q, tl.permute(b_k, (0, 2, 1)), input_precision="ieee")
        b_scores = base_two(b_scores, row_scale[None, :, None], soft_cap, SOFT_CAP)
        if MASKED:
            distance = position[None, :, None] - o_keys[:, None, :]
            seen = (o_keys < end)[:, None, :] & (distance >= 0) & ((window <= 0) | (distance < window))
            b_scores = tl.where(seen, b_scores, float("-inf"))
        weights, largest, total, factor = weigh(b_scores, largest, total, MASKED)
        b_v = load_rows(p_v + i_key * v_stride + o_v, o_keys < end, m_width, MASKED, PADDED)
        b_v = halves(b_v, PACKED, True) if HALVED else b_v.to(b_q.dtype)
        b_sums = tl.dot(weights.to(b_v.dtype), b_v, b_sums * factor[:, :, None], input_precision="ieee")
    return b_sums, largest, total


@triton.jit
def join(
    partials,
    states,
    value_scales,  # of this head, read if SCALED
    out,  # of this text
    entries,  # partial sums of each row
    o_first,  # index of the first one
    rows,
    first_row,
    last_row,  # end of this program's rows, exclusive
    group,
    i_kv,
    out_token,
    out_head,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALED: tl.constexpr,
    JOINED_ROWS: tl.constexpr,
    JOINED: tl.constexpr,
):
    """Join partial sums to output rows, JOINED sums and JOINED_ROWS rows at a time, with rows and columns as one axis.

    So each output value belongs to one thread, and threads exchange nothing.
    """
    o_e, o_f = tl.arange(0, JOINED), tl.arange(0, JOINED_ROWS * WIDTH)
    o_d = o_f % WIDTH
    for i_row in range(first_row, last_row, JOINED_ROWS):
        o_r = i_row + o_f // WIDTH
        m_out = (o_r < last_row) & (o_d < HEAD)
        sums = tl.zeros([JOINED_ROWS * WIDTH], tl.float32)
        largest = tl.full([JOINED_ROWS * WIDTH], float("-inf"), tl.float32)
        total = tl.zeros([JOINED_ROWS * WIDTH], tl.float32)
        for i_entry in range(0, entries, JOINED):
            m_part = (i_entry + o_e < entries)[:, None] & m_out[None, :]
            o_part = (o_first + i_entry + o_e)[:, None] * rows + o_r[None, :]
            # written by other multiprocessors: read from the L2 cache
            b_largest = tl.load(states + o_part * 2, mask=m_part, other=float("-inf"), cache_modifier=".cg")
            b_total = tl.load(states + o_part * 2 + 1, mask=m_part, other=0.0, cache_modifier=".cg")
            b_part = tl.load(partials + o_part * HEAD + o_d[None, :], mask=m_part, other=0.0, cache_modifier=".cg")
            new = tl.maximum(largest, tl.max(b_largest, 0))
            safe = tl.where(new == float("-inf"), 0.0, new)
            factors, factor = tl.exp2(b_largest - safe[None, :]), tl.exp2(largest - safe)
            sums = sums * factor + tl.sum(b_part * factors, 0)
            total = total * factor + tl.sum(b_total * factors, 0)
            largest = new
        inverse = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
        if SCALED:
            inverse = inverse * tl.load(value_scales + o_d, mask=o_d < HEAD, other=0.0)
        p_out = out + (o_r // group) * out_token + (i_kv * group + o_r % group) * out_head + o_d
        tl.store(p_out, (sums * inverse).to(out.dtype.element_ty), mask=m_out)


@triton.jit
def decode_kernel(
    q,  # [B, T, Hq, D]
    keys,  # [B, Hk, capacity, D]: q's type, int8 or float8 e4m3
    values,
    key_scales,  # float32 [Hk, D], read if SCALED
    value_scales,
    lengths,  # int32 [B]: keys of each text, including the new tokens
    out,  # [B, T, Hq, D]
    partials,  # float32 [B, Hk, splits, GROUPS, T * group, D]
    states,  # float32 [B, Hk, splits, GROUPS, T * group, 2]: largest score in base 2, and sum
    counters,  # int32 [B, Hk, blocks of rows], 0 before and after the call; unused with one split
    q_text,
    q_token,
    q_head,
    k_text,
    k_head,
    k_token,
    v_text,
    v_head,
    v_token,
    out_text,
    out_token,
    out_head,
    tokens,
    group,
    splits,
    split_keys,  # a multiple of BLOCK_N
    window,  # 0 for none
    scale,
    soft_cap,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,
    SCALED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PACKED: tl.constexpr,
    INTEGER: tl.constexpr,
    JOINED_ROWS: tl.constexpr,
    JOINED: tl.constexpr,
):
    """BLOCK_M rows of one KV head over one split. The grid is (splits * blocks of rows, Hk, B).

    A block of keys is divided into GROUPS with separate sums, so that warps do not wait for each other. The program
    that finishes last joins all splits. SCALED: the cache is read as float16, unless the queries are float32. PACKED:
    an int8 cache is converted by PTX, which the interpreter does not support. INTEGER: int8 keys are multiplied as
    integers, by 15-bit queries as two int8 parts.
    """
    i_split, i_block = tl.program_id(0) % splits, tl.program_id(0) // splits
    i_kv, i_text = tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + i_text)
    first, end = i_split * split_keys, tl.minimum((i_split + 1) * split_keys, length)
    if (first >= length) & (i_split > 0):
        return  # not joined either

    PADDED: tl.constexpr = HEAD != WIDTH
    HALVED: tl.constexpr = SCALED and q.dtype.element_ty != tl.float32
    o_r, o_d = i_block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    rows = tokens * group
    m_rows, m_width = o_r < rows, o_d < HEAD
    i_token, o_head = o_r // group, i_kv * group + o_r % group
    position = length - tokens + i_token  # each row's position among the keys
    p_q = q + i_text.to(tl.int64) * q_text + i_token[:, None] * q_token + o_head[:, None] * q_head + o_d[None, :]
    b_q = load_rows(p_q, m_rows, m_width, True, PADDED)
    row_scale = tl.full([BLOCK_M], 1.0, tl.float32) * scale
    b_low = b_q
    if SCALED:
        # Queries are multiplied by the keys' scales and normalized to a maximum of 1: no float16 underflows.
        b_scales = tl.load(key_scales + i_kv * HEAD + o_d, mask=m_width, other=0.0)
        b_scaled = b_q.to(tl.float32) * b_scales[None, :]
        largest_q = tl.max(tl.abs(b_scaled), 1)
        largest_q = tl.where(largest_q > 0.0, largest_q, 1.0)
        b_scaled = b_scaled / largest_q[:, None]
        row_scale = row_scale * largest_q
        if INTEGER:
            b_scaled = b_scaled * 127.0
            b_whole = tl.floor(b_scaled + 0.5)
            b_q = b_whole.to(tl.int8)
            b_low = tl.floor((b_scaled - b_whole) * 254.0 + 0.5).to(tl.int8)
            row_scale = row_scale / 127.0
        else:
            b_q = b_scaled.to(tl.float16) if HALVED else b_scaled
            b_low = b_q
    b_q = tl.broadcast_to(b_q[None, :, :], [GROUPS, BLOCK_M, WIDTH])
    b_low = tl.broadcast_to(b_low[None, :, :], [GROUPS, BLOCK_M, WIDTH])

    begin = first
    whole = tl.minimum(end, length - tokens + 1)  # keys visible to all rows
    if window > 0:
        oldest = length - tokens + i_block * BLOCK_M // group - window + 1
        begin = tl.maximum(first, tl.maximum(0, oldest) // BLOCK_N * BLOCK_N)
        whole = begin
    whole = begin + tl.maximum(0, whole - begin) // BLOCK_N * BLOCK_N
    o_g = tl.arange(0, GROUPS)
    o_n = o_g[:, None] * (BLOCK_N // GROUPS) + tl.arange(0, BLOCK_N // GROUPS)[None, :]
    p_k = keys + i_text.to(tl.int64) * k_text + i_kv.to(tl.int64) * k_head
    p_v = values + i_text.to(tl.int64) * v_text + i_kv.to(tl.int64) * v_head
    o_k = o_n[:, :, None] * k_token + o_d[None, None, :]
    o_v = o_n[:, :, None] * v_token + o_d[None, None, :]
    k_stride, v_stride = k_token.to(tl.int64), v_token.to(tl.int64)
    b_sums = tl.zeros([GROUPS, BLOCK_M, WIDTH], tl.float32)
    largest = tl.full([GROUPS, BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS, BLOCK_M], tl.float32)
    b_sums, largest, total = attend_cache(
        b_sums, largest, total, b_q, b_low, row_scale, p_k, p_v, o_k, o_v, k_stride, v_stride, o_n, m_width, position,
        begin, whole, window, soft_cap, BLOCK_N, PADDED, False, HALVED, SOFT_CAP, PACKED, INTEGER,
    )  # fmt: skip
    b_sums, largest, total = attend_cache(
        b_sums, largest, total, b_q, b_low, row_scale, p_k, p_v, o_k, o_v, k_stride, v_stride, o_n, m_width, position,
        whole, end, window, soft_cap, BLOCK_N, PADDED, True, HALVED, SOFT_CAP, PACKED, INTEGER,
    )  # fmt: skip

    o_head_of_text = i_text.to(tl.int64) * tl.num_programs(1) + i_kv
    o_first = o_head_of_text * splits * GROUPS
    o_part = (o_first + i_split * GROUPS + o_g)[:, None] * rows + o_r[None, :]
    m_part = m_rows[None, :, None] & m_width[None, None, :]
    tl.store(partials + o_part[:, :, None] * HEAD + o_d[None, None, :], b_sums, mask=m_part)
    tl.store(states + o_part * 2, largest, mask=m_rows[None, :])
    tl.store(states + o_part * 2 + 1, total, mask=m_rows[None, :])
    tl.debug_barrier()  # all writes finish before this program increments the counter
    live = tl.minimum(tl.maximum(1, tl.cdiv(length, split_keys)), splits)  # the first split is always written
    before = live - 1
    p_counter = counters + o_head_of_text * (tl.num_programs(0) // splits) + i_block
    if splits > 1:
        before = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu")
    if before == live - 1:
        tl.store(p_counter, 0, mask=splits > 1)
        last_row = tl.minimum(rows, (i_block + 1) * BLOCK_M)
        join(
            partials, states, value_scales + i_kv * HEAD, out + i_text.to(tl.int64) * out_text, live * GROUPS, o_first,
            rows, i_block * BLOCK_M, last_row, group, i_kv, out_token, out_head,
            HEAD, WIDTH, SCALED, JOINED_ROWS, JOINED,
        )  # fmt: skip
