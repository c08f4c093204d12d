"""Checks a recipe for TensorRT-RTX."""

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
    """Raises HostError if the builder is not installed, or cannot build for the target's compute capability."""
    from edgecompress.backends.tensorrt_rtx import engine

    engine.require_builder(target)


def check(recipe: Recipe) -> None:
    """Raises RecipeError for settings that GPUs do not support."""
    gpu_checks.check_gpu(recipe)
    gpu_checks.check_no_compatibility(recipe, "tensorrt-rtx")


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    capability = ".".join(map(str, target.compute_capability or ()))
    lower = ("lower", f"to the ops of tensorrt-rtx, ONNX opset {target.opset}")
    return (lower,), (("compile", f"an engine for compute capability {capability}, built without a GPU"),)
