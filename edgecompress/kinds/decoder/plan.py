"""Checks and completes a decoder's recipe, and estimates the cost of its export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgecompress.errors import RecipeError
from edgecompress.kinds.base import Estimate, Format
from edgecompress.types.precision import (
    FP8,
    FP16,
    FP32,
    INT4_WEIGHTS,
    INT8_WEIGHTS,
    MIXED_WEIGHTS,
    SHORT_FOR_WEIGHTS,
)
from edgecompress.types.recipe import KV_CACHES, EngineRecipe, Recipe
from edgecompress.types.student import Student

SHORT_PRECISIONS = SHORT_FOR_WEIGHTS
QUANTIZES_ACTIVATIONS = False
"""False: activations have outliers that per-tensor scales cannot represent, and steps are bound by reading weights."""

GENAI = Format(
    name="genai",
    title="onnxruntime-genai",
    description="additional graph and configuration for onnxruntime-genai",
    custom_ops=False,
)
FORMATS = (GENAI,)

_ON_CPU = (FP32, INT8_WEIGHTS, INT4_WEIGHTS, MIXED_WEIGHTS)
_ROWS = (1, 1, 4)
_LARGEST_CONTEXT = 4096  # default: an engine's cache takes its full capacity, used or not
_LARGEST_PREFILL = 512  # new tokens per call
_PREFILL_WORK_PER_S = 1.4e11  # parameters x tokens, int4 on two threads
_SHARES = {FP32: 1.0, FP16: 0.5, FP8: 0.27, INT8_WEIGHTS: 0.27, INT4_WEIGHTS: 0.14, MIXED_WEIGHTS: 0.18}


def candidates(names: Sequence[str], accelerator: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in _ON_CPU) if accelerator == "cpu" else tuple(names)


def check(recipe: Recipe, student: Student) -> None:
    """Decoders support everything in a recipe."""


def engine_profile(recipe: EngineRecipe, student: Student) -> EngineRecipe:
    """Raises RecipeError for a context longer than the student's, or calls longer than the context."""
    most = student.max_length_tokens
    context = recipe.context_tokens or min(most or _LARGEST_CONTEXT, _LARGEST_CONTEXT)
    if most is not None and context > most:
        raise RecipeError(
            f"the engine's context is {context} tokens, but the student's is {most}",
            hint=f"Set --engine-context to at most {most}.",
        )
    lengths = recipe.length_tokens or (1, 1, min(context, _LARGEST_PREFILL))
    if lengths[2] > context:
        raise RecipeError(
            f"the engine's profile has up to {lengths[2]} tokens, but its context is {context}",
            hint=f"Set --engine-tokens to at most {context}.",
        )
    return replace(recipe, batch=recipe.batch or _ROWS, length_tokens=lengths, context_tokens=context)


def estimate(recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate:
    """Estimate the cost; the constants are fitted to R1-Distill-Qwen-1.5B's shape, 1.78 B parameters.

    Weights are streamed: all float32 weights are in memory only if a float precision is a candidate.
    """
    float_bytes = student.parameters * 4
    whole = 3.0 if {FP32, FP16} & set(candidates) else 1.4 if MIXED_WEIGHTS in candidates else 0.7
    alone = 2.5e-7 if MIXED_WEIGHTS in candidates else 0.0  # the float graph runs once per weight
    swept = 3e-7 if recipe.quantize.method == "gptq" else 0.0  # Hessians, their factors, the loop over channels
    copies, calibrating = 3, 0.0  # of each candidate's graph on disk; seconds per candidate
    if recipe.quantize.kv_cache != KV_CACHES[0]:
        from edgecompress.quantize.texts import affordable_texts

        tokens = recipe.calibration.max_length_tokens
        texts = affordable_texts(student.parameters, tokens, recipe.calibration.samples)
        copies, calibrating = 4, texts * tokens * student.parameters / _PREFILL_WORK_PER_S
    return Estimate(
        ram_bytes=round(700_000_000 + whole * float_bytes),
        disk_bytes=round((1.2 + copies * sum(_SHARES[name] for name in candidates)) * float_bytes),
        seconds=round(
            20 + (8e-8 + (5e-8 + swept) * len(candidates) + alone) * student.parameters + calibrating * len(candidates)
        ),
    )


def stages(recipe: Recipe, student: Student, *, calibrates: bool) -> Sequence[tuple[str, str]]:
    calibration, cache = recipe.calibration, recipe.quantize.kv_cache
    made = [("capture", f"{student.architecture} to ONNX, attention as one op")]
    if calibrates:
        made.append(("calibrate", f"{calibration.samples} samples of {calibration.text}, {calibration.method}"))
    if cache != KV_CACHES[0]:
        made.append(("calibrate", f"KV cache in {cache}: per-channel scales from {calibration.text}"))
    return made
