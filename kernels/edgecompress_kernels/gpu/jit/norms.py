"""Adds a residual and normalizes the sum in one pass over memory."""

import triton
import triton.language as tl


@triton.jit
def add_norm_kernel(
    x,  # [rows, columns]
    residual,
    gamma,  # [columns]
    beta,  # [columns], read if LAYER
    summed,  # x + residual, rounded once; the norm uses the rounded sum, as two separate ops would
    out,
    x_row,
    residual_row,
    rows,
    columns,
    epsilon,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYER: tl.constexpr,
):
    """Process ROWS rows. LAYER: LayerNorm, else RMSNorm. ``summed`` and ``out`` are contiguous. Grid: (rows / ROWS)."""
    o_r, o_c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    m_columns = o_c < columns
    mask = (o_r < rows)[:, None] & m_columns[None, :]
    o_row = o_r.to(tl.int64)[:, None]
    b_x = tl.load(x + o_row * x_row + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
    b_residual = tl.load(residual + o_row * residual_row + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
    b_sum = (b_x + b_residual).to(summed.dtype.element_ty)
    tl.store(summed + o_row * columns + o_c[None, :], b_sum, mask=mask)
    b_sum = b_sum.to(tl.float32)
    if LAYER:
        mean = tl.sum(b_sum, 1) / columns
        b_sum = tl.where(mask, b_sum - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(b_sum * b_sum, 1) / columns + epsilon)
    b_out = b_sum * inverse[:, None] * tl.load(gamma + o_c, mask=m_columns, other=0.0).to(tl.float32)[None, :]
    if LAYER:
        b_out = b_out + tl.load(beta + o_c, mask=m_columns, other=0.0).to(tl.float32)[None, :]
    tl.store(out + o_row * columns + o_c[None, :], b_out.to(out.dtype.element_ty), mask=mask)
