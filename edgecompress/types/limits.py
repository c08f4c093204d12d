"""The limits that a backend sets for quantized weights and activations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightLimits:
    """The defaults suit ONNX Runtime's CPU kernels, if sums of 8-bit products do not saturate.

    A backend passes its limits to the quantize stage, so that schemes need not know the backend.
    """

    integer_bits: int = 8  # of int8 weights with 8-bit activations: 7 if pairs of products are summed in 16 bits
    signed_activations: bool = False  # symmetric int8; otherwise uint8 with a zero point
    residuals: bool = False  # with 8-bit activations, also round both inputs of residual additions to 8 bits
    half_scales: bool = False  # float16 represents every int8 scale exactly
    positive_scales: bool = False  # no block has a negative scale
    least_blocks: int = 1  # per column of 4-bit weights; above 1, no block is padded
    whole_columns: bool = False  # 8-bit weights with float activations have one scale per column
    table_rows: bool = False  # embedding tables are int8 with one scale per row, at any precision


DEFAULT_LIMITS = WeightLimits()
