"""SmoothQuant (arXiv 2211.10438): moves outliers of a few activation channels into the weights.

The input of a layer is divided by one factor per channel and the weight's rows are multiplied by it: the float32
function stays the same, and the activations fit into 8 bits. This costs one elementwise product per layer input, so it
is applied only where it clearly lowers the layer's quantization error on the calibration sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.graph.linears import Linear
from edgecompress.graph.rewrite import constant
from edgecompress.quantize.calibration import ActivationStatistics
from edgecompress.quantize.numerics import fake_quantize_uint8, per_column_int8, range_to_uint8
from edgecompress.types.arrays import FloatArray

WORTH_A_PRODUCT = 5e-4  # relative squared error that the extra product must save
_SMOOTH = "/Smooth"


def smooth(
    model: ir.Model, linears: Sequence[Linear], statistics: Mapping[str, ActivationStatistics], alpha: float
) -> list[str]:
    """Insert the products into the float32 ``model`` in place; return the names of the smoothed layers.

    Layers that read the same input share one factor. Their inputs change, so call find_linears again afterwards.
    """
    groups: dict[int, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(id(linear.x), []).append(linear)
    served = []
    for group in groups.values():
        seen = statistics[group[0].x.name or ""]
        factor = _factor(group, seen, alpha)
        if factor is not None:
            _apply(model.graph, group, factor)
            served += [linear.name for linear in group]
    return served


def smoothed(value: ir.Value) -> tuple[ir.Value, FloatArray] | None:
    """The smoothed form of ``value``, if a layer reads it, and the factor per channel [K] that restores ``value``."""
    for node, index in value.uses():
        if index == 0 and node.op_type == "Mul" and (node.name or "").endswith(_SMOOTH):
            inverse = node.inputs[1]
            assert inverse is not None
            assert inverse.const_value is not None
            return node.outputs[0], (1 / inverse.const_value.numpy()).astype(np.float32)
    return None


def _factor(group: Sequence[Linear], seen: ActivationStatistics, alpha: float) -> FloatArray | None:
    """Factor per channel [K]; None if smoothing does not pay."""
    weights = np.concatenate([linear.weight_array() for linear in group], axis=1)
    weight_max = np.maximum(np.abs(weights).max(axis=1), 1e-5)
    factor = np.maximum(seen.absmax, 1e-5) ** alpha / weight_max ** (1 - alpha)
    factor = np.maximum(factor / np.median(factor), 1e-3).astype(np.float32)
    plain = _layer_error(seen.sample, weights, (seen.low, seen.high))
    # The largest remaining magnitude, on the side or sides of zero that the tensor uses.
    reach = float((seen.absmax / factor).max())
    low = max(-reach, float((seen.sample / factor).min()) * 1.25)
    smoothed = _layer_error(seen.sample / factor, weights * factor[:, None], (low, reach))
    return factor if plain - smoothed > WORTH_A_PRODUCT else None


def _layer_error(x: FloatArray, weight: FloatArray, bounds: tuple[float, float]) -> float:
    """Squared error of the layer's output on the sample, relative to the output. x [rows, K], weight [K, N]."""
    quantized, scale = per_column_int8(weight)
    exact = x @ weight
    approximate = fake_quantize_uint8(x, *range_to_uint8(*bounds)) @ (quantized.astype(np.float32) * scale)
    return float(np.square(exact - approximate).sum() / max(np.square(exact).sum(), 1e-12))


def _apply(graph: ir.Graph, group: Sequence[Linear], factor: FloatArray) -> None:
    first = group[0]
    inverse = constant(graph, f"{first.name}.smoothing", (1 / factor).astype(np.float32))
    product = ir.node("Mul", [first.x, inverse], name=f"{first.name}{_SMOOTH}")
    graph.insert_before(first.matmul, product)
    out = product.outputs[0]
    out.type, out.shape = first.x.type, first.x.shape
    out.name = f"{first.name}.smoothed"
    for linear in group:
        weight = constant(graph, f"{linear.name}.weight_smoothed", linear.weight_array() * factor[:, None])
        linear.matmul.replace_input_with(0, out)
        linear.matmul.replace_input_with(1, weight)
