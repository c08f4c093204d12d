"""The quantize stage: turns a captured graph and a precision into a portable quantized graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.linears import Linear, find_linears, find_residuals
from edgecompress.graph.model import write_model
from edgecompress.graph.ops import has_cached_attention
from edgecompress.graph.packing import pack_linears
from edgecompress.quantize.calibration import ActivationStatistics, collect_statistics
from edgecompress.quantize.experts import routers
from edgecompress.quantize.parts import FloatGraph
from edgecompress.quantize.scheme import Quantization
from edgecompress.quantize.schemes import SCHEMES
from edgecompress.quantize.smoothing import smooth
from edgecompress.types.arrays import Batches
from edgecompress.types.graph import Graph
from edgecompress.types.limits import DEFAULT_LIMITS, WeightLimits
from edgecompress.types.precision import FP32, PRECISIONS
from edgecompress.types.recipe import Recipe

MakeRunnable = Callable[[ir.Model], ir.Model]
"""Lowers a portable graph, which it may change, to run on this machine."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The float32 graph after smoothing, with statistics of its linear layers' inputs, for int8 and float8."""

    path: Path
    statistics: Mapping[str, ActivationStatistics]
    smoothed_layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration data; which of it is needed depends on the precision and the method.

    Method ``gptq`` runs ``batches``, and mixed bits run ``probes``, a few short texts, once per weight; both need
    ``make_runnable``. 8-bit activations need ``statistics``.
    """

    statistics: Calibrated | None = None
    batches: Batches | None = None
    probes: Batches | None = None
    make_runnable: MakeRunnable | None = None


NO_CALIBRATION = Calibration()


def every_layer(_: Linear) -> bool:
    return True


def calibrate(
    graph: Graph,
    recipe: Recipe,
    batches: Batches,
    make_runnable: MakeRunnable,
    out_dir: Path,
    *,
    limits: WeightLimits = DEFAULT_LIMITS,
) -> Calibrated:
    """Collect statistics, smooth where it pays, and write ``smoothed.onnx``.

    ``make_runnable`` receives copies of the graph. ``limits.residuals`` adds statistics of residual additions' inputs.
    """
    model = ir.load(graph.path)
    statistics = _collect(model, batches, make_runnable, limits)
    served: list[str] = []
    if recipe.quantize.smooth_alpha > 0:
        served = smooth(model, find_linears(model), statistics, recipe.quantize.smooth_alpha)
        if served:
            statistics = _collect(model, batches, make_runnable, limits)
    path = out_dir / "smoothed.onnx"
    write_model(model, path)
    return Calibrated(path=path, statistics=statistics, smoothed_layers=tuple(served))


def _collect(
    model: ir.Model, batches: Batches, make_runnable: MakeRunnable, limits: WeightLimits
) -> dict[str, ActivationStatistics]:
    linears = find_linears(model)
    tensors = {linear.x.name or "": linear.width for linear in linears}
    if limits.residuals:
        widths = {linear.output: linear.columns for linear in linears}
        for node in find_residuals(linears):
            width = next(widths[value] for value in node.inputs if value in widths)
            tensors |= {value.name or "": width for value in node.inputs if value is not None}
    return collect_statistics(make_runnable(model.clone()), tensors, batches())


def quantize(
    graph: Graph,
    precision: str,
    recipe: Recipe,
    out_dir: Path,
    *,
    calibration: Calibration = NO_CALIBRATION,
    limits: WeightLimits = DEFAULT_LIMITS,
    only: Callable[[Linear], bool] = every_layer,
) -> Graph:
    """Write ``quantized-<precision>.onnx``; a precision without a scheme (fp32, fp16) returns the captured graph.

    ``only`` selects layers, to find the most costly ones. Raises RecipeError if there is nothing to quantize.
    """
    scheme = SCHEMES[precision]
    if scheme is None:
        return Graph(path=graph.path, stage="quantized", precision=precision)
    source, statistics = graph.path, _NOTHING
    if PRECISIONS[precision].calibrated:
        assert calibration.statistics is not None, f"{precision} needs calibration"
        source, statistics = calibration.statistics.path, calibration.statistics.statistics
    model = ir.load(source)
    if has_cached_attention(model):
        pack_linears(model)  # one product for query, key and value, one for gate and up
    kept = routers(model)
    linears = [linear for linear in find_linears(model) if linear.name not in kept and only(linear)]
    if not linears:
        raise RecipeError(f"the graph has no linear layer to quantize to {precision}", hint=f"Use --precision {FP32}.")
    scheme(
        Quantization(
            model=model,
            linears=linears,
            recipe=recipe,
            limits=limits,
            statistics=statistics,
            float_graph=lambda: _float_graph(graph, calibration),
            batches=calibration.batches or _no_text,
            probes=calibration.probes or _no_text,
        )
    )
    path = out_dir / f"quantized-{precision}.onnx"
    write_model(model, path)
    return Graph(path=path, stage="quantized", precision=precision)


_NOTHING: Mapping[str, ActivationStatistics] = {}


def _no_text() -> tuple[()]:
    return ()


def _float_graph(graph: Graph, calibration: Calibration) -> FloatGraph:
    assert calibration.make_runnable is not None, "calibration needs make_runnable"
    floats = FloatGraph(calibration.make_runnable(ir.load(graph.path)))
    gc.collect()  # the loaded model has reference cycles, which keep the weights' files mapped
    return floats
