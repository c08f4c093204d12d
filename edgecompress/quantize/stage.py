"""The quantize stage: a captured graph and a precision in, a portable quantized graph out."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.linears import Linear, find_embeddings, find_linears, find_residuals
from edgecompress.graph.model import write_model
from edgecompress.graph.packing import pack_linears
from edgecompress.quantize.activations import quantize_linears
from edgecompress.quantize.calibration import ActivationStatistics, collect_statistics
from edgecompress.quantize.experts import routers
from edgecompress.quantize.float8 import quantize_linears_float8
from edgecompress.quantize.hessians import Batches, StreamedHessians
from edgecompress.quantize.language_model import quantize_decoder
from edgecompress.quantize.mixed import mix
from edgecompress.quantize.parts import FloatGraph
from edgecompress.quantize.residuals import quantize_residuals
from edgecompress.quantize.sensitivity import UNIFORM
from edgecompress.quantize.smoothing import smooth
from edgecompress.quantize.weights import quantize_embeddings, quantize_weights
from edgecompress.types.graph import Graph
from edgecompress.types.precision import FP8
from edgecompress.types.precision import MIXED_WEIGHTS as MIXED
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import ALONE_KEY


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The float32 graph after smoothing, and what its linear layers' inputs look like. Serves int8 and float8."""

    path: Path
    statistics: Mapping[str, ActivationStatistics]
    smoothed_layers: tuple[str, ...]


def needs_calibration(precision: str) -> bool:
    return precision in ("int8-dynamic", "int8-static", FP8)


def calibrate(
    graph: Graph,
    recipe: Recipe,
    batches: Batches,
    make_runnable: Callable[[ir.Model], ir.Model],
    out_dir: Path,
    *,
    residuals: bool = False,
) -> Calibrated:
    """Collect statistics, smooth where it pays, and write ``smoothed.onnx``.

    ``make_runnable`` lowers a copy of the portable graph for the machine that calibrates. ``residuals``: what residual
    additions read is looked at too.
    """
    model = ir.load(graph.path)
    statistics = _collect(model, batches, make_runnable, residuals)
    served: list[str] = []
    if recipe.quantize.smooth_alpha > 0:
        served = smooth(model, find_linears(model), statistics, recipe.quantize.smooth_alpha)
        if served:
            statistics = _collect(model, batches, make_runnable, residuals)
    path = out_dir / "smoothed.onnx"
    write_model(model, path)
    return Calibrated(path=path, statistics=statistics, smoothed_layers=tuple(served))


def _collect(
    model: ir.Model, batches: Batches, make_runnable: Callable[[ir.Model], ir.Model], residuals: bool
) -> dict[str, ActivationStatistics]:
    linears = find_linears(model)
    tensors = {linear.x.name or "": linear.width for linear in linears}
    if residuals:
        widths = {linear.output: linear.bias_array().size for linear in linears}
        for node in find_residuals(linears):
            width = next(widths[value] for value in node.inputs if value in widths)
            tensors |= {value.name or "": width for value in node.inputs if value is not None}
    return collect_statistics(make_runnable(model.clone()), tensors, batches())


def quantize(
    graph: Graph,
    precision: str,
    recipe: Recipe,
    calibrated: Calibrated | None,
    out_dir: Path,
    *,
    weight_bits: int = 8,
    only: Callable[[Linear], bool] = lambda _: True,
    batches: Batches | None = None,
    probes: Batches | None = None,
    make_runnable: Callable[[ir.Model], ir.Model] | None = None,
    symmetric: bool = False,
) -> Graph:
    """Write ``quantized-<precision>.onnx``. fp32 and fp16 come back as the captured graph: fp16 is made when lowering.

    ``only`` picks layers, for the search of the costly ones. ``batches`` and ``make_runnable`` (see
    :func:`calibrate`) are what method ``gptq`` runs; ``probes`` are the few short texts that ``mixed-weights`` runs for
    each weight. ``symmetric``, for TensorRT: activations around zero, residual additions in 8 bits too, scales that are
    positive and that float16 holds. Raises RecipeError if there is nothing to quantize.
    """
    if precision in ("fp32", "fp16"):
        return Graph(path=graph.path, stage="quantized", precision=precision)
    if needs_calibration(precision):
        assert calibrated is not None, "int8 activations need calibration"
        model = ir.load(calibrated.path)
    else:
        model = ir.load(graph.path)
    decodes = model.metadata_props.get("edgecompress.task") == "text-generation"
    if decodes:
        pack_linears(model)  # one product for query, key and value, one for gate and up
    kept = routers(model)
    linears = [linear for linear in find_linears(model) if linear.name not in kept and only(linear)]
    if not linears:
        raise RecipeError(
            f"the graph has no linear layer that {precision} could quantize", hint="Use --precision fp32."
        )
    if precision == FP8:
        assert calibrated is not None
        quantize_linears_float8(
            model,
            linears,
            calibrated.statistics,
            recipe.calibration,
            bias_correction=recipe.quantize.bias_correction,
        )
        if recipe.quantize.quantize_embeddings:
            quantize_embeddings(model, find_embeddings(model), half_scales=symmetric)
    elif needs_calibration(precision) and calibrated is not None:
        residuals = find_residuals(linears) if symmetric else []
        quantize_linears(
            model,
            linears,
            calibrated.statistics,
            static=recipe.calibration if precision == "int8-static" else None,
            weight_bits=weight_bits,
            bias_correction=recipe.quantize.bias_correction,
            symmetric=symmetric,
        )
        quantize_residuals(model, residuals, calibrated.statistics, recipe.calibration)
        if recipe.quantize.quantize_embeddings:
            quantize_embeddings(model, find_embeddings(model), half_scales=symmetric)
    else:
        hessians, floats, mixed = None, None, UNIFORM
        if recipe.quantize.method == "gptq" or precision == MIXED:
            assert make_runnable is not None, "what is calibrated must be run"
            # A graph of its own: the weights of this one are let go of while it still runs.
            floats = FloatGraph(make_runnable(ir.load(graph.path)))
            gc.collect()  # what it was made of are rings of references, which hold every weight's file mapped
        if floats is not None and recipe.quantize.method == "gptq":
            assert batches is not None, "gptq is calibrated"
            tensors = {linear.x.name or "": linear.width for linear in linears}
            hessians = StreamedHessians(floats.model, tensors, batches)
        if floats is not None and precision == MIXED:
            assert probes is not None, "bits are mixed by measurement"
            mixed = mix(floats.model, recipe.quantize, probes, hessians)
            model.metadata_props[ALONE_KEY] = json.dumps({name: float(f"{kl:.3g}") for name, kl in mixed.costs.items()})
        bits = 8 if precision == "int8-weights" else 4
        if decodes:
            wanted = {linear.name for linear in linears}
            quantize_decoder(
                model,
                recipe.quantize,
                bits=bits,
                hessians=hessians,
                only=lambda linear: linear.name in wanted,
                mixed=mixed,
                for_engine=symmetric,
            )
        else:
            quantize_weights(
                model,
                linears,
                bits=bits,
                block_size=recipe.quantize.block_size,
                method=recipe.quantize.method,
                symmetric=recipe.quantize.symmetric,
                accuracy_level=recipe.quantize.first_accuracy_level,
                hessians=hessians,
                positive=symmetric,
            )
            if recipe.quantize.quantize_embeddings:
                quantize_embeddings(model, find_embeddings(model), half_scales=symmetric)
    path = out_dir / f"quantized-{precision}.onnx"
    write_model(model, path)
    return Graph(path=path, stage="quantized", precision=precision)
