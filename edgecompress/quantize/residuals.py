"""Rounds both inputs of residual additions to symmetric int8 with one scale per tensor, as engines fuse them.

If a quantized layer reads the same value, the input is rounded with that layer's scale, smoothed or not
(:mod:`edgecompress.quantize.smoothing`), so that the norm before it writes 8 bits only. The other input, the layer's
output, has a few channels that reach far beyond the rest, and one scale would lose the rest (MiniLM's mean cosine drops
to 0.83). It is balanced if that pays: divided by one factor per channel, rounded, and multiplied back, which an engine
does in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant
from edgecompress.quantize.activations import activation_scale
from edgecompress.quantize.calibration import ActivationStatistics
from edgecompress.quantize.numerics import range_to_int8
from edgecompress.quantize.smoothing import WORTH_A_PRODUCT, smoothed
from edgecompress.types.arrays import FloatArray
from edgecompress.types.recipe import CalibrationRecipe


def quantize_residuals(
    model: ir.Model,
    residuals: Sequence[ir.Node],
    statistics: Mapping[str, ActivationStatistics],
    static: CalibrationRecipe,
) -> int:
    """Put ``edgecompress::Rounded`` on both inputs of each addition in place; return how many inputs are balanced.

    Inputs of the op: x, float32 scale and int8 zero point (0); its output is x rounded to 8 bits, as float32.
    ``statistics`` must cover all inputs of the additions, and their smoothed forms.
    """
    balanced = 0
    for node in residuals:
        for index, value in enumerate(list(node.inputs)):
            assert value is not None
            side, factor, (low, high) = _side(model.graph, node, value, statistics, static)
            scale = activation_scale(model.graph, side, low, high, signed=True)
            steps = [ir.node("Rounded", [side, *scale], domain=DOMAIN, name=f"{node.name}/side_{index}/Rounded")]
            if factor is not None:
                back = constant(model.graph, f"{side.name}.factor", factor)
                steps.append(ir.node("Mul", [steps[0].outputs[0], back], name=f"{node.name}/side_{index}/Mul"))
                balanced += 1
            for step in steps:
                step.outputs[0].type, step.outputs[0].shape = value.type, value.shape
            model.graph.insert_before(node, steps)
            node.replace_input_with(index, steps[-1].outputs[0])
    model.opset_imports[DOMAIN] = 1
    return balanced


def _side(
    graph: ir.Graph,
    node: ir.Node,
    value: ir.Value,
    statistics: Mapping[str, ActivationStatistics],
    static: CalibrationRecipe,
) -> tuple[ir.Value, FloatArray | None, tuple[float, float]]:
    """The value to round for ``value``, the factor per channel [K] that restores it, and the range to cover."""
    shared = smoothed(value)
    if shared is not None:
        seen = statistics[shared[0].name or ""]
        return *shared, seen.clipped_range(static.method, static.percentile)
    seen = statistics[value.name or ""]
    bounds = seen.clipped_range(static.method, static.percentile)
    if any(reader.op_type == "QuantizedLinear" for reader, _ in value.uses()):
        return value, None, bounds
    reach = np.maximum(seen.absmax, 1e-5)
    factor = (reach / np.median(reach)).astype(np.float32)
    limit = float((seen.absmax / factor).max())  # all channels have the same reach, so there is no outlier to clip
    plain = _rounding_error(seen.sample, *bounds)
    if plain - _rounding_error(seen.sample / factor, -limit, limit) <= WORTH_A_PRODUCT:
        return value, None, bounds
    inverse = constant(graph, f"{value.name}.balance", (1 / factor).astype(np.float32))
    product = ir.node("Mul", [value, inverse], name=f"{value.name}/Balance")
    graph.insert_before(node, product)
    side = product.outputs[0]
    side.type, side.shape, side.name = value.type, value.shape, f"{value.name}.balanced"
    return side, factor, (-limit, limit)


def _rounding_error(x: FloatArray, low: float, high: float) -> float:
    """Squared error of int8 relative to the square of x [rows, K], per channel, averaged over the channels.

    Channels count equally, because the norm after the addition scales them to one size.
    """
    scale = range_to_int8(low, high)
    error = np.clip(np.rint(x / scale), -127, 127) * scale - x
    return float((np.square(error).sum(axis=0) / np.maximum(np.square(x).sum(axis=0), 1e-12)).mean())
