"""Attention of one or a few new tokens over a KV cache: the keys are split among programs, and a second kernel joins.

(Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023.) The queries that share a key and value head are rows of one small
matrix, several new tokens included: row ``t * group + g`` is token ``t`` of head ``h * group + g``.
"""

import triton
import triton.language as tl

from edgecompress_kernels.gpu.jit.softmax import base_two, divide, load_rows, weigh


@triton.jit
def decode_kernel(
    q,  # [B, T, Hq, D]
    keys,  # [B, Hk, capacity, D]: q's type, int8 or float8 e4m3
    values,
    key_scales,  # float32 [Hk, D], read if SCALED
    value_scales,
    lengths,  # int32 [B]: keys of each text, the new tokens' included
    out,  # [B, T, Hq, D], written here if there is one split
    partials,  # float32 [B, Hk, T * group, splits, D]
    states,  # float32 [B, Hk, T * group, splits, 2]: largest score in base 2, and sum
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
    SCALED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):
    """BLOCK_M rows of one key and value head over one split; the grid is (splits * blocks of rows, Hk, B)."""
    i_split, i_block = tl.program_id(0) % splits, tl.program_id(0) // splits
    i_kv, i_text = tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + i_text)
    first, end = i_split * split_keys, tl.minimum((i_split + 1) * split_keys, length)
    if (first >= length) & (i_split > 0):
        return  # the reduction does not read it either

    PADDED: tl.constexpr = HEAD != WIDTH
    o_r, o_n, o_d = i_block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, WIDTH)
    rows = tokens * group
    m_rows, m_width = o_r < rows, o_d < HEAD
    i_token, o_head = o_r // group, i_kv * group + o_r % group
    position = length - tokens + i_token  # of each row among the keys
    p_q = q + i_text.to(tl.int64) * q_text + i_token[:, None] * q_token + o_head[:, None] * q_head + o_d[None, :]
    b_q = load_rows(p_q, m_rows, m_width, True, PADDED)
    row_scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if SCALED:
        # The keys' scales go into the queries, which are then brought to a largest value of 1: no float16 underflows.
        b_scales = tl.load(key_scales + i_kv * HEAD + o_d, mask=m_width, other=0.0)
        b_scaled = b_q.to(tl.float32) * b_scales[None, :]
        row_scale = tl.max(tl.abs(b_scaled), 1)
        row_scale = tl.where(row_scale > 0.0, row_scale, 1.0)
        b_q = (b_scaled / row_scale[:, None]).to(b_q.dtype)

    begin = first
    if window > 0:
        oldest = length - tokens + i_block * BLOCK_M // group - window + 1
        begin = tl.maximum(first, tl.maximum(0, oldest) // BLOCK_N * BLOCK_N)
    p_k = keys + i_text.to(tl.int64) * k_text + i_kv.to(tl.int64) * k_head + o_n[:, None] * k_token + o_d[None, :]
    p_v = values + i_text.to(tl.int64) * v_text + i_kv.to(tl.int64) * v_head + o_n[:, None] * v_token + o_d[None, :]
    k_stride, v_stride = k_token.to(tl.int64), v_token.to(tl.int64)  # a long cache passes 2^31
    b_sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for i_key in range(begin, end, BLOCK_N):
        o_keys = i_key + o_n
        b_k = load_rows(p_k + i_key * k_stride, o_keys < end, m_width, True, PADDED).to(b_q.dtype)
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        if SCALED:
            b_scores = b_scores * row_scale[:, None]
        b_scores = base_two(b_scores, scale, soft_cap, SOFT_CAP)
        distance = position[:, None] - o_keys[None, :]
        seen = (o_keys < end)[None, :] & (distance >= 0) & ((window <= 0) | (distance < window))
        b_scores = tl.where(seen, b_scores, float("-inf"))
        weights, largest, total, factor = weigh(b_scores, largest, total, True)
        b_v = load_rows(p_v + i_key * v_stride, o_keys < end, m_width, True, PADDED).to(b_q.dtype)
        b_sums = tl.dot(weights.to(b_q.dtype), b_v, b_sums * factor[:, None], input_precision="ieee")
    if SCALED:
        b_sums = b_sums * tl.load(value_scales + i_kv * HEAD + o_d, mask=m_width, other=0.0)[None, :]

    m_out = m_rows[:, None] & m_width[None, :]
    if splits == 1:
        p_out = out + i_text.to(tl.int64) * out_text + i_token[:, None] * out_token
        p_out += o_head[:, None] * out_head + o_d[None, :]
        tl.store(p_out, divide(b_sums, total).to(out.dtype.element_ty), mask=m_out)
    else:
        o_part = ((i_text.to(tl.int64) * tl.num_programs(1) + i_kv) * rows + o_r) * splits + i_split
        tl.store(partials + o_part[:, None] * HEAD + o_d[None, :], b_sums, mask=m_out)
        tl.store(states + o_part * 2, largest, mask=m_rows)
        tl.store(states + o_part * 2 + 1, total, mask=m_rows)


@triton.jit
def join_kernel(
    partials,
    states,
    lengths,
    out,
    out_text,
    out_token,
    out_head,
    tokens,
    group,
    splits,
    split_keys,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One row's splits, BLOCK_S at a time; the grid is (T * group, Hk, B)."""
    i_row, i_kv, i_text = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_s, o_d = tl.arange(0, BLOCK_S), tl.arange(0, WIDTH)
    m_width = o_d < HEAD
    live = tl.cdiv(tl.load(lengths + i_text), split_keys)
    live = tl.minimum(tl.maximum(1, live), splits)  # the first split is always written
    row = ((i_text.to(tl.int64) * tl.num_programs(1) + i_kv) * (tokens * group) + i_row) * splits
    b_sums = tl.zeros([WIDTH], tl.float32)
    largest = float("-inf")
    total = 0.0
    for i_split in range(0, live, BLOCK_S):
        o_part = row + i_split + o_s
        m_part = i_split + o_s < live
        b_largest = tl.load(states + o_part * 2, mask=m_part, other=float("-inf"))
        b_total = tl.load(states + o_part * 2 + 1, mask=m_part, other=0.0)
        b_part = tl.load(
            partials + o_part[:, None] * HEAD + o_d[None, :], mask=m_part[:, None] & m_width[None, :], other=0.0
        )
        new = tl.maximum(largest, tl.max(b_largest, 0))
        safe = tl.where(new == float("-inf"), 0.0, new)
        factors = tl.exp2(b_largest - safe)
        factor = tl.exp2(largest - safe)
        b_sums = b_sums * factor + tl.sum(b_part * factors[:, None], 0)
        total = total * factor + tl.sum(b_total * factors, 0)
        largest = new
    inverse = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
    p_out = out + i_text.to(tl.int64) * out_text + (i_row // group) * out_token
    p_out += (i_kv * group + i_row % group) * out_head + o_d
    tl.store(p_out, (b_sums * inverse).to(out.dtype.element_ty), mask=m_width)
