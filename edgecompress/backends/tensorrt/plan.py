"""What TensorRT asks of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.backends import gpu_checks
from edgecompress.backends.engine_precisions import precisions, resolve
from edgecompress.backends.gpu_checks import opset
from edgecompress.types.recipe import Recipe
from edgecompress.types.target import Target

__all__ = [
    "BUILDS_ENGINES", "CALIBRATES", "PROVIDERS", "check", "check_host", "opset", "precisions", "resolve", "stages",
]  # fmt: skip

PROVIDERS = ()
BUILDS_ENGINES = True
CALIBRATES = True


def check_host(target: Target) -> None:
    """The engine is built on the device: nothing is needed here."""


def check(recipe: Recipe) -> None:
    """Raises RecipeError for what is not for a GPU."""
    gpu_checks.check_gpu(recipe)


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    lower = ("lower", f"to the ops of tensorrt, ONNX opset {target.opset}")
    return (lower,), (("plan", "how TensorRT builds the engine, on the device itself"),)
