"""Checks and completes a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecompress.kinds.base import Estimate, Format
from edgecompress.types.precision import FP16, FP32, INT8_DYNAMIC
from edgecompress.types.recipe import EngineRecipe, Recipe
from edgecompress.types.student import Student

SHORT_PRECISIONS: Mapping[str, str] = {}
QUANTIZES_ACTIVATIONS = True
FORMATS: tuple[Format, ...] = ()


def candidates(names: Sequence[str], accelerator: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in (FP32, FP16, INT8_DYNAMIC))


def check(recipe: Recipe, student: Student) -> None: ...


def engine_profile(recipe: EngineRecipe, student: Student) -> EngineRecipe:
    return recipe


def estimate(recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate:
    return Estimate(ram_bytes=1 << 20, disk_bytes=1 << 16, seconds=1)


def stages(recipe: Recipe, student: Student, *, calibrates: bool) -> Sequence[tuple[str, str]]:
    return (("capture", "one product"),)
