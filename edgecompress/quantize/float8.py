"""Weights and activations in float8 E4M3 with one scale per tensor, for tensor cores from Ada onwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.graph.linears import Linear, find_embeddings, replace_linear
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant
from edgecompress.quantize.calibration import ActivationStatistics
from edgecompress.quantize.numerics import half_scale
from edgecompress.quantize.scheme import Quantization
from edgecompress.quantize.weights import quantize_embeddings
from edgecompress.types.arrays import FloatArray
from edgecompress.types.recipe import CalibrationRecipe

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = 448.0  # E4M3 has no infinity: larger values are clipped


def to_float8(values: FloatArray, scale: FloatArray) -> npt.NDArray[ml_dtypes.float8_e4m3fn]:
    """The nearest E4M3 value of ``values / scale``, clipped to its range."""
    rounded: npt.NDArray[ml_dtypes.float8_e4m3fn] = np.clip(values / scale, -LARGEST, LARGEST).astype(E4M3)
    return rounded


def scale_for(reach: float) -> FloatArray:
    """The scale, float32 [], that maps ``reach`` to the largest E4M3 value; float16 represents it exactly."""
    return half_scale(np.array((reach or LARGEST) / LARGEST, dtype=np.float32))


def quantize_to_float8(job: Quantization) -> None:
    """The scheme: layers in float8, embedding tables in int8 with one scale per row."""
    recipe = job.recipe
    quantize_linears_float8(
        job.model, job.linears, job.statistics, recipe.calibration, bias_correction=recipe.quantize.bias_correction
    )
    if recipe.quantize.quantize_embeddings:
        quantize_embeddings(job.model, find_embeddings(job.model), limits=job.limits)


def quantize_linears_float8(
    model: ir.Model,
    linears: Sequence[Linear],
    statistics: Mapping[str, ActivationStatistics],
    clipping: CalibrationRecipe,
    *,
    bias_correction: bool = True,
) -> int:
    """Replace layers by ``edgecompress::QuantizedLinear`` in place; return how many.

    Inputs of the op: x, float8 weight [K, N], float32 scale [], float32 bias [N], float32 x_scale [] and float8
    x_zero_point [], which is 0. ``clipping`` gives the method that clips x's calibrated range.
    """
    for linear in linears:
        seen = statistics[linear.x.name or ""]
        weight, bias = linear.weight_array(), linear.bias_array()
        scale = scale_for(float(np.abs(weight).max(initial=0.0)))
        rounded = to_float8(weight, scale)
        if bias_correction:
            bias = bias + seen.mean @ (weight - rounded.astype(np.float32) * scale)
        low, high = seen.clipped_range(clipping.method, clipping.percentile)
        inputs = [
            linear.x,
            constant(model.graph, f"{linear.name}.weight_float8", rounded),
            constant(model.graph, f"{linear.name}.weight_scale", scale),
            constant(model.graph, f"{linear.name}.bias", bias.astype(np.float32)),
            constant(model.graph, f"{linear.x.name}.scale", scale_for(max(-low, high))),
            constant(model.graph, f"{linear.x.name}.zero_point", np.zeros((), dtype=E4M3)),
        ]
        replace_linear(model.graph, linear, inputs, "QuantizedLinear", {"static": 1})
    model.opset_imports[DOMAIN] = 1
    return len(linears)
