"""What a backend demands of quantized weights and activations, said as what it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightLimits:
    """The defaults are those of ONNX Runtime's CPU kernels, where 8-bit sums do not saturate."""

    integer_bits: int = 8  # of int8 weights beside 8-bit activations: 7 where pairs of products are summed in 16 bits
    signed_activations: bool = False  # int8 around zero; else uint8 with a zero point
    positive_scales: bool = False  # no block may have a scale below zero
    half_scales: bool = False  # float16 holds every scale
    residuals: bool = False  # what residual additions read is kept in 8 bits too
    least_blocks: int = 1  # of a column of 4-bit weights: one block a column may be taken for another scheme
    whole_columns: bool = False  # 8-bit weights have one scale a column, no blocks
    table_rows: bool = False  # embedding tables are int8 with one scale a row, whatever the weights are
