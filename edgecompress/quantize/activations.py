"""int8 weights with 8-bit activations, dynamic or static.

Weights are symmetric with one scale per column. The bias absorbs the mean error of the quantized weight on the
calibration text (bias correction, arXiv 1906.04721), at no cost at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.graph.linears import Linear, replace_linear
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant
from edgecompress.quantize.calibration import ActivationStatistics
from edgecompress.quantize.numerics import per_column_int8, range_to_int8, range_to_uint8
from edgecompress.types.limits import DEFAULT_LIMITS, WeightLimits
from edgecompress.types.recipe import CalibrationRecipe


def quantize_linears(
    model: ir.Model,
    linears: Sequence[Linear],
    statistics: Mapping[str, ActivationStatistics],
    *,
    static: CalibrationRecipe | None,
    bias_correction: bool = True,
    limits: WeightLimits = DEFAULT_LIMITS,
) -> int:
    """Replace layers by ``edgecompress::QuantizedLinear`` in place; return how many.

    Inputs of the op: x, int8 weight [K, N], float32 scale [N], float32 bias [N] and, if ``static`` gives the clipping
    of the calibrated range, float32 x_scale and uint8 x_zero_point. Without ``static``, x is quantized at each run.
    With ``limits.signed_activations``, x_zero_point is int8 and 0.
    """
    for linear in linears:
        seen = statistics.get(linear.x.name or "")
        weight, bias = linear.weight_array(), linear.bias_array()
        quantized, scale = per_column_int8(weight, limits.integer_bits, half_scales=limits.half_scales)
        if bias_correction and seen is not None:
            bias = bias + seen.mean @ (weight - quantized.astype(np.float32) * scale)
        inputs = [
            linear.x,
            constant(model.graph, f"{linear.name}.weight_int8", quantized),
            constant(model.graph, f"{linear.name}.weight_scale", scale),
            constant(model.graph, f"{linear.name}.bias", bias.astype(np.float32)),
        ]
        if static is not None:
            assert seen is not None, "static quantization needs statistics of every input"
            low, high = seen.clipped_range(static.method, static.percentile)
            inputs += activation_scale(model.graph, linear.x, low, high, signed=limits.signed_activations)
        replace_linear(model.graph, linear, inputs, "QuantizedLinear", {"static": int(static is not None)})
    model.opset_imports[DOMAIN] = 1
    return len(linears)


def activation_scale(graph: ir.Graph, x: ir.Value, low: float, high: float, *, signed: bool) -> list[ir.Value]:
    """Scale and zero point of one tensor, shared by all its readers."""
    scale, zero_point = (range_to_int8(low, high), np.int8(0)) if signed else range_to_uint8(low, high)
    return [
        constant(graph, f"{x.name}.scale", np.array(scale, dtype=np.float32)),
        constant(graph, f"{x.name}.zero_point", np.array(zero_point)),
    ]
