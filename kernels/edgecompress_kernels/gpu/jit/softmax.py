"""Code shared by both attention kernels: a block of scores, and a running softmax in base 2."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(p, m_rows, m_width, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """Load [..., rows, WIDTH] at ``p``; masked values are zero, so that memory outside the data is never used.

    ``m_rows`` is [..., rows] and ``m_width`` [WIDTH], with two or three axes at ``p``.
    """
    if len(p.shape) == 3:  # noqa: SIM108 -- Triton resolves this `if` when it compiles
        m_width = m_width[None, None, :]
    else:
        m_width = m_width[None, :]
    if MASKED:
        mask = tl.expand_dims(m_rows, len(p.shape) - 1)
        if PADDED:
            mask = mask & m_width
        block = tl.load(p, mask=mask, other=0.0)
    else:
        if PADDED:  # noqa: SIM108 -- Triton resolves this `if` when it compiles
            block = tl.load(p, mask=m_width, other=0.0)
        else:
            block = tl.load(p)
    return block


@triton.jit
def base_two(b_scores, scale, soft_cap, SOFT_CAP: tl.constexpr):
    """Convert raw products to exponents of 2: scaled, and capped to cap * tanh(score / cap) if SOFT_CAP."""
    if SOFT_CAP:
        # tanh(x) = 1 - 2 / (1 + e^2x), correctly 1 or -1 where e^2x is infinite or 0
        grown = tl.exp2(b_scores * (scale * (2.0 * LOG2_E) / soft_cap))
        b_scores = (1.0 - 2.0 / (1.0 + grown)) * (soft_cap * LOG2_E)
    else:
        b_scores = b_scores * (scale * LOG2_E)
    return b_scores


@triton.jit
def weigh(b_scores, largest, total, MASKED: tl.constexpr):
    """Return the weights of a block [..., keys], the running largest score and sum, and the factor for previous sums.

    A row without visible keys keeps -inf as its largest score and 0 as its sum, without NaN.
    """
    LAST: tl.constexpr = len(b_scores.shape) - 1
    new = tl.maximum(largest, tl.max(b_scores, LAST))
    safe = new
    if MASKED:
        safe = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(b_scores - tl.expand_dims(safe, LAST))
    factor = tl.exp2(largest - safe)
    return weights, new, total * factor + tl.sum(weights, LAST), factor


@triton.jit
def divide(b_sums, total):
    """Divide weighted sums [rows, WIDTH] by ``total``; a row without visible keys is zero."""
    return b_sums * tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)[:, None]
