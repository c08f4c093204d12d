"""What a decoder asks of a recipe, and what its export takes."""

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
"""Its activations grow outliers that one scale a tensor cannot hold, and its steps are bound by reading weights."""

GENAI = Format(
    name="genai",
    title="onnxruntime-genai",
    description="a graph and configuration for onnxruntime-genai beside ours",
    custom_ops=False,
)
FORMATS = (GENAI,)

_ON_CPU = (FP32, INT8_WEIGHTS, INT4_WEIGHTS, MIXED_WEIGHTS)
_ROWS = (1, 1, 4)
_LARGEST_CONTEXT = 4096  # unless more is asked for: a cache is as long as it is built, whatever of it is used
_LARGEST_PREFILL = 512  # new tokens of a call
_PREFILL_WORK_PER_S = 1.4e11  # parameters x tokens, int4 on two threads
_SHARES = {FP32: 1.0, FP16: 0.5, FP8: 0.27, INT8_WEIGHTS: 0.27, INT4_WEIGHTS: 0.14, MIXED_WEIGHTS: 0.18}


def candidates(names: Sequence[str], accelerator: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in _ON_CPU) if accelerator == "cpu" else tuple(names)


def check(recipe: Recipe, student: Student) -> None:
    """A decoder can be asked for all that a recipe says."""


def engine_profile(recipe: EngineRecipe, student: Student) -> EngineRecipe:
    """Raises RecipeError for a context that the student does not have, and for calls longer than the context."""
    most = student.max_length_tokens
    context = recipe.context_tokens or min(most or _LARGEST_CONTEXT, _LARGEST_CONTEXT)
    if most is not None and context > most:
        raise RecipeError(
            f"the engine's context is {context} tokens, and the student takes {most}",
            hint=f"Give --engine-context up to {most}.",
        )
    lengths = recipe.length_tokens or (1, 1, min(context, _LARGEST_PREFILL))
    if lengths[2] > context:
        raise RecipeError(
            f"the engine's profile goes to {lengths[2]} tokens, and its context is {context}",
            hint=f"Give --engine-tokens up to {context}.",
        )
    return replace(recipe, batch=recipe.batch or _ROWS, length_tokens=lengths, context_tokens=context)


def estimate(recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate:
    """Fitted to R1-Distill-Qwen-1.5B's shape, of 1.78 B parameters.

    Weights are streamed: in float32 they are only ever whole where a float precision is a candidate.
    """
    float_bytes = student.parameters * 4
    whole = 3.0 if {FP32, FP16} & set(candidates) else 1.4 if MIXED_WEIGHTS in candidates else 0.7
    alone = 2.5e-7 if MIXED_WEIGHTS in candidates else 0.0  # the float graph runs once a weight
    swept = 3e-7 if recipe.quantize.method == "gptq" else 0.0  # Hessians, their factors, and channel after channel
    copies, calibrating = 3, 0.0  # of each candidate's graph on the disk; seconds a candidate
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
        made.append(("calibrate", f"KV cache in {cache}: one scale a channel, from {calibration.text}"))
    return made
