"""Checks a recipe for TensorRT."""

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
    """Does nothing: the engine is built on the device."""


def check(recipe: Recipe) -> None:
    """Raises RecipeError for settings that GPUs do not support."""
    gpu_checks.check_gpu(recipe)


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    lower = ("lower", f"to the ops of tensorrt, ONNX opset {target.opset}")
    return (lower,), (("plan", "the settings with which TensorRT builds the engine on the device"),)
