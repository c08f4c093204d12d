"""Limits that a strongly typed engine puts on weights, each of them strict."""

from __future__ import annotations

from edgecompress.types.limits import WeightLimits

ENGINE = WeightLimits(
    signed_activations=True,
    positive_scales=True,
    half_scales=True,
    residuals=True,
    least_blocks=2,
    whole_columns=True,
    table_rows=True,
)
