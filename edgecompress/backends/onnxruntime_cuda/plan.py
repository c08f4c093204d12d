"""Checks a recipe for ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecompress.backends import gpu_checks
from edgecompress.backends.gpu_checks import opset
from edgecompress.errors import RecipeError
from edgecompress.types.precision import AUTO, FP16
from edgecompress.types.recipe import Recipe
from edgecompress.types.target import Target

__all__ = [
    "BUILDS_ENGINES", "CALIBRATES", "PROVIDERS", "check", "check_host", "opset", "precisions", "resolve", "stages",
]  # fmt: skip

PROVIDERS = ("CUDAExecutionProvider",)
BUILDS_ENGINES = False
CALIBRATES = True


def precisions(quantizes_activations: bool) -> Mapping[str, str]:
    return {AUTO: FP16, FP16: FP16}


def resolve(precision: str, quantizes_activations: bool | None) -> str:
    """Raises RecipeError for anything but "auto" and fp16."""
    known = precisions(bool(quantizes_activations))
    if precision not in known:
        raise RecipeError(
            f"this version does not support {precision} for ONNX Runtime's CUDA provider",
            hint="Use --precision fp16, or --backend tensorrt-rtx or tensorrt for quantized weights.",
        )
    return known[precision]


def check_host(target: Target) -> None:
    """Does nothing: any machine can write a graph for any GPU."""


def check(recipe: Recipe) -> None:
    """Raises RecipeError for settings that GPUs do not support."""
    gpu_checks.check_gpu(recipe)
    gpu_checks.check_no_compatibility(recipe, "onnxruntime")


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    return (("lower", f"to the ops of onnxruntime, ONNX opset {target.opset}, float16"),), ()
