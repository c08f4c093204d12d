"""int8 weights with uint8 activations, dynamic or static.

Weights are symmetric with one scale a column. The mean error that a quantized weight makes on the calibration text is
added to the bias (bias correction, arXiv 1906.04721), at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.quantize.calibration import ActivationStatistics
from edgecompress.quantize.layers import DOMAIN, Linear, constant, replace_linear
from edgecompress.quantize.numerics import per_column_int8, range_to_uint8
from edgecompress.types.recipe import CalibrationRecipe


def quantize_linears(
    model: ir.Model,
    linears: Sequence[Linear],
    statistics: Mapping[str, ActivationStatistics],
    *,
    static: CalibrationRecipe | None,
    weight_bits: int = 8,
    bias_correction: bool = True,
) -> int:
    """Replace layers by ``edgecompress::QuantizedLinear`` in place; return how many.

    Inputs of the op: x, int8 weight [K, N], float32 scale [N], float32 bias [N] and, when ``static`` says how to clip
    the calibrated range, float32 x_scale and uint8 x_zero_point. Without ``static`` x is quantized at each run.
    """
    for linear in linears:
        seen = statistics.get(linear.x.name or "")
        weight, bias = linear.weight_array(), linear.bias_array()
        quantized, scale = per_column_int8(weight, weight_bits)
        if bias_correction and seen is not None:
            bias = bias + seen.mean @ (weight - quantized.astype(np.float32) * scale)
        inputs = [
            linear.x,
            constant(model.graph, f"{linear.name}.weight_int8", quantized),
            constant(model.graph, f"{linear.name}.weight_scale", scale),
            constant(model.graph, f"{linear.name}.bias", bias.astype(np.float32)),
        ]
        if static is not None:
            assert seen is not None, "static quantization needs the statistics of every input"
            x_scale, zero_point = range_to_uint8(*seen.clipped_range(static.method, static.percentile))
            inputs.append(constant(model.graph, f"{linear.x.name}.scale", np.array(x_scale, dtype=np.float32)))
            inputs.append(constant(model.graph, f"{linear.x.name}.zero_point", np.array(zero_point, dtype=np.uint8)))
        replace_linear(model.graph, linear, inputs, "QuantizedLinear", {"static": int(static is not None)})
    model.opset_imports[DOMAIN] = 1
    return len(linears)
