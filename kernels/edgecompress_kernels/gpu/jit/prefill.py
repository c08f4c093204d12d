"""Attention of many new tokens: flash attention over packed texts of any lengths (Dao, arXiv 2307.08691)."""

import triton
import triton.language as tl

from edgecompress_kernels.gpu.jit.softmax import base_two, divide, load_rows, weigh


@triton.jit
def attend_keys(
    b_sums,
    largest,
    total,
    b_q,
    p_k,
    p_v,
    k_token,  # int64: the offset from a text's first key can exceed 2^31
    v_token,
    o_rows,  # positions of the queries among the keys
    m_width,
    first,
    end,
    keys,
    window,
    scale,
    soft_cap,
    BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):
    """Process keys ``first`` to ``end``. Not MASKED: all of them exist and are visible to all rows."""
    o_n = tl.arange(0, BLOCK_N)
    for i_key in range(first, end, BLOCK_N):
        o_keys = i_key + o_n
        # [BLOCK_N, WIDTH]
        b_k = load_rows(p_k + i_key * k_token, o_keys < keys, m_width, MASKED, PADDED)
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_scores = base_two(b_scores, scale, soft_cap, SOFT_CAP)
        if MASKED:
            distance = o_rows[:, None] - o_keys[None, :]
            seen = (o_keys < keys)[None, :]
            if CAUSAL:
                seen = seen & (distance >= 0)
            if WINDOW:
                seen = seen & (distance < window)
                if not CAUSAL:
                    seen = seen & (distance > -window)
            b_scores = tl.where(seen, b_scores, float("-inf"))
        weights, largest, total, factor = weigh(b_scores, largest, total, MASKED)
        b_v = load_rows(p_v + i_key * v_token, o_keys < keys, m_width, MASKED, PADDED)
        b_sums = tl.dot(weights.to(b_v.dtype), b_v, b_sums * factor[:, None], input_precision="ieee")
    return b_sums, largest, total


@triton.jit
def prefill_kernel(
    q,  # [tokens, Hq, D]
    k,  # [keys, Hk, D]
    v,
    out,
    q_starts,  # int32 [B + 1]
    k_starts,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    out_token,
    out_head,
    group,
    window,
    scale,
    soft_cap,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):
    """BLOCK_M queries of one head of one text. The grid is (blocks of the longest text, Hq, B).

    A text's last query is at its last key's position. WINDOW: only keys at a distance below ``window`` are visible.
    """
    i_block = tl.program_id(0)
    if CAUSAL:
        i_block = tl.num_programs(0) - 1 - i_block  # the longest rows start first
    i_head, i_text = tl.program_id(1), tl.program_id(2)
    q_first, k_first = tl.load(q_starts + i_text), tl.load(k_starts + i_text)
    tokens, keys = tl.load(q_starts + i_text + 1) - q_first, tl.load(k_starts + i_text + 1) - k_first
    if i_block * BLOCK_M >= tokens:
        return

    PADDED: tl.constexpr = HEAD != WIDTH
    o_m, o_n, o_d = i_block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, WIDTH)
    m_rows, m_width = o_m < tokens, o_d < HEAD
    past = keys - tokens
    i_kv = i_head // group
    p_q = q + q_first.to(tl.int64) * q_token + i_head * q_head + o_m.to(tl.int64)[:, None] * q_token + o_d[None, :]
    p_k = k + k_first.to(tl.int64) * k_token + i_kv * k_head + o_n[:, None] * k_token + o_d[None, :]
    p_v = v + k_first.to(tl.int64) * v_token + i_kv * v_head + o_n[:, None] * v_token + o_d[None, :]
    b_q = load_rows(p_q, m_rows, m_width, True, PADDED)

    k_stride, v_stride = k_token.to(tl.int64), v_token.to(tl.int64)
    b_sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = past + i_block * BLOCK_M  # position of the block's first query among the keys
    first = 0
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, top + BLOCK_M)
    elif WINDOW:
        end = tl.minimum(keys, top + BLOCK_M + window - 1)
    if WINDOW:
        first = tl.maximum(0, top - window + 1) // BLOCK_N * BLOCK_N
    else:
        whole = keys // BLOCK_N * BLOCK_N
        if CAUSAL:
            whole = tl.maximum(0, top + 1) // BLOCK_N * BLOCK_N
        b_sums, largest, total = attend_keys(
            b_sums, largest, total, b_q, p_k, p_v, k_stride, v_stride, past + o_m, m_width, 0, whole, keys, window,
            scale, soft_cap, BLOCK_N, PADDED, False, CAUSAL, False, SOFT_CAP,
        )  # fmt: skip
        first = whole
    b_sums, largest, total = attend_keys(
        b_sums, largest, total, b_q, p_k, p_v, k_stride, v_stride, past + o_m, m_width, first, end, keys, window,
        scale, soft_cap, BLOCK_N, PADDED, True, CAUSAL, WINDOW, SOFT_CAP,
    )  # fmt: skip

    p_out = out + q_first.to(tl.int64) * out_token + i_head * out_head
    p_out += o_m.to(tl.int64)[:, None] * out_token + o_d[None, :]
    tl.store(p_out, divide(b_sums, total).to(out.dtype.element_ty), mask=m_rows[:, None] & m_width[None, :])
