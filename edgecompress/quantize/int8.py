"""The schemes with int8 weights and 8-bit activations: static (calibrated scales) and dynamic."""

from __future__ import annotations

from edgecompress.graph.linears import find_embeddings, find_residuals
from edgecompress.quantize.activations import quantize_linears
from edgecompress.quantize.residuals import quantize_residuals
from edgecompress.quantize.scheme import Quantization
from edgecompress.quantize.weights import quantize_embeddings
from edgecompress.types.recipe import CalibrationRecipe


def quantize_to_dynamic_int8(job: Quantization) -> None:
    _quantize(job, None)


def quantize_to_static_int8(job: Quantization) -> None:
    _quantize(job, job.recipe.calibration)


def _quantize(job: Quantization, static: CalibrationRecipe | None) -> None:
    residuals = find_residuals(job.linears) if job.limits.residuals else []
    quantize_linears(
        job.model,
        job.linears,
        job.statistics,
        static=static,
        bias_correction=job.recipe.quantize.bias_correction,
        limits=job.limits,
    )
    quantize_residuals(job.model, residuals, job.statistics, job.recipe.calibration)
    if job.recipe.quantize.quantize_embeddings:
        quantize_embeddings(job.model, find_embeddings(job.model), limits=job.limits)
