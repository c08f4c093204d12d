"""The quantize stage: a captured graph and a precision in, a portable quantized graph out."""

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
"""Lowers a portable graph, which it may change, for the machine that calibrates."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The float32 graph after smoothing, and what its linear layers' inputs look like. Serves int8 and float8."""

    path: Path
    statistics: Mapping[str, ActivationStatistics]
    smoothed_layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What quantization may run, and what was found by running it. A precision and a method take of it what they need.

    ``batches`` is what method ``gptq`` runs, ``probes`` the few short texts that are run for every weight when bits are
    mixed; both need ``make_runnable``. Activations in 8 bits need ``statistics``.
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

    ``make_runnable`` is given copies of the graph. With ``limits.residuals`` what residual additions read is looked at
    too.
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
    """Write ``quantized-<precision>.onnx``. What no scheme changes comes back as the captured graph.

    ``only`` picks layers, for the search of the costly ones. Raises RecipeError if there is nothing to quantize.
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
        raise RecipeError(
            f"the graph has no linear layer that {precision} could quantize", hint=f"Use --precision {FP32}."
        )
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
    assert calibration.make_runnable is not None, "what is calibrated must be run"
    floats = FloatGraph(calibration.make_runnable(ir.load(graph.path)))
    gc.collect()  # what it was made of are rings of references, which hold every weight's file mapped
    return floats
