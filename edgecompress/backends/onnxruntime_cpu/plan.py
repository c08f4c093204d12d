"""Checks a recipe for ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecompress.errors import RecipeError
from edgecompress.types.precision import FP8
from edgecompress.types.recipe import Recipe
from edgecompress.types.target import Target

PROVIDERS = ("CPUExecutionProvider",)
BUILDS_ENGINES = False
CALIBRATES = False


def precisions(quantizes_activations: bool) -> Mapping[str, str]:
    return {}


def resolve(precision: str, quantizes_activations: bool | None) -> str:
    """Raises RecipeError for float8."""
    if precision == FP8:
        raise RecipeError(
            f"onnxruntime does not support {FP8}, only engines do",
            hint="Use --backend tensorrt-rtx or tensorrt.",
        )
    return precision


def check_host(target: Target) -> None:
    """Does nothing: any machine can compile for any CPU."""


def check(recipe: Recipe) -> None:
    """Does nothing: this backend supports everything in a recipe."""


def opset(target: Target) -> int:
    return target.opset


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    lower = ("lower", f"to the ops of onnxruntime, ONNX opset {target.opset}")
    return (lower, ("compile", f"optimize offline for {target.name}")), ()
