"""Checks and completes recipes of students with one graph that runs once per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgecompress.errors import RecipeError
from edgecompress.kinds.base import Estimate, Format
from edgecompress.types.precision import INT4_WEIGHTS, INT8_WEIGHTS, MIXED_WEIGHTS, SHORT_FOR_WEIGHTS
from edgecompress.types.recipe import KV_CACHES, EngineRecipe, Recipe
from edgecompress.types.student import Student

SHORT_PRECISIONS: Mapping[str, str] = {}  # "int8" would be ambiguous
QUANTIZES_ACTIVATIONS = True
FORMATS: tuple[Format, ...] = ()

_SAMPLES = (1, 8, 32)  # min, opt and max batch of an engine


def candidates(names: Sequence[str], accelerator: str) -> tuple[str, ...]:
    return tuple(names)


def check(recipe: Recipe, student: Student) -> None:
    """Raises RecipeError for settings that only decoders have."""
    if SHORT_FOR_WEIGHTS.get(recipe.precision, recipe.precision) == MIXED_WEIGHTS:
        raise RecipeError(
            f"--precision mixed is for decoders, but this student's task is {student.task}",
            hint=f"Use --precision {INT4_WEIGHTS} or {INT8_WEIGHTS}.",
        )
    if recipe.quantize.kv_cache != KV_CACHES[0]:
        raise RecipeError(
            f"--kv-cache is for decoders, but this student's task is {student.task}", hint="Omit --kv-cache."
        )
    if recipe.engine.context_tokens is not None:
        raise RecipeError(
            f"--engine-context is for decoders, but this student's task is {student.task}",
            hint="Omit --engine-context.",
        )


def engine_profile(recipe: EngineRecipe, student: Student) -> EngineRecipe:
    """Raises RecipeError for texts longer than the student's maximum."""
    most, lengths = student.max_length_tokens, recipe.length_tokens
    if most is not None and lengths is None:
        lengths = (1, max(1, most // 2), most)
    if most is not None and lengths is not None and lengths[2] > most:
        raise RecipeError(
            f"the engine's profile has up to {lengths[2]} tokens, but the student accepts {most}",
            hint=f"Set --engine-tokens to at most {most}.",
        )
    return replace(recipe, batch=recipe.batch or _SAMPLES, length_tokens=lengths)


def estimate(recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate:
    """Estimate the cost; the constants are fitted to MiniLM, 0.023 B parameters."""
    float_bytes = student.parameters * 4
    seconds = 15 + 6e-7 * student.parameters + 3 * len(candidates) * (1 + 3e-8 * student.parameters)
    return Estimate(
        ram_bytes=700_000_000 + 6 * float_bytes,
        disk_bytes=(2 + 3 * len(candidates)) * float_bytes,
        seconds=round(seconds),
    )


def stages_on(samples: str, recipe: Recipe, student: Student, *, calibrates: bool) -> Sequence[tuple[str, str]]:
    """``samples``: the calibration samples in words."""
    calibration = recipe.calibration
    calibrate = ("calibrate", f"{calibration.samples} samples of {samples}, {calibration.method}")
    return (
        ("capture", f"{student.architecture} to ONNX, attention as one op"),
        *((calibrate,) if calibrates else ()),
    )
