"""What ONNX Runtime's CPU provider asks of a recipe."""

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
            f"onnxruntime has no kernels for {FP8}: it is an engine's precision",
            hint="Give --backend tensorrt-rtx or tensorrt.",
        )
    return precision


def check_host(target: Target) -> None:
    """Any machine compiles for any CPU."""


def check(recipe: Recipe) -> None:
    """It does all that a recipe can say."""


def opset(target: Target) -> int:
    return target.opset


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    lower = ("lower", f"to the ops of onnxruntime, ONNX opset {target.opset}")
    return (lower, ("compile", f"optimize offline for {target.name}")), ()
