"""Checks and completes an image encoder's recipe."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.kinds.one_pass_plan import (
    FORMATS,
    QUANTIZES_ACTIVATIONS,
    SHORT_PRECISIONS,
    candidates,
    check,
    engine_profile,
    estimate,
    stages_on,
)
from edgecompress.types.recipe import Recipe
from edgecompress.types.student import Student

__all__ = [
    "FORMATS", "QUANTIZES_ACTIVATIONS", "SHORT_PRECISIONS", "candidates", "check", "engine_profile", "estimate",
    "stages",
]  # fmt: skip


def stages(recipe: Recipe, student: Student, *, calibrates: bool) -> Sequence[tuple[str, str]]:
    return stages_on("synthetic images", recipe, student, calibrates=calibrates)
