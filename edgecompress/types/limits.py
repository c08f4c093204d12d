"""What a backend demands of quantized weights and activations, said as what it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightLimits:
    """The defaults are those of ONNX Runtime's CPU kernels, where sums of 8-bit products do not saturate.

    A backend hands its own to the quantize stage, which passes them on whole; no scheme asks which backend it is.
    """

    integer_bits: int = 8  # of int8 weights beside 8-bit activations: 7 where pairs of products are summed in 16 bits
    signed_activations: bool = False  # int8 around zero; else uint8 with a zero point
    residuals: bool = False  # beside 8-bit activations, both sides of residual additions are rounded to 8 bits too
    half_scales: bool = False  # float16 holds every int8 scale with all its digits
    positive_scales: bool = False  # no block has a scale below zero
    least_blocks: int = 1  # of a column of 4-bit weights; above 1 they are whole blocks, none of them filled up
    whole_columns: bool = False  # 8-bit weights beside float activations have one scale a column, whatever the block
    table_rows: bool = False  # embedding tables are int8 with one scale a row, whatever the weights are


DEFAULT_LIMITS = WeightLimits()
