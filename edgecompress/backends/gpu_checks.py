"""Checks shared by the plans of GPU backends. It must import fast: plans run before anything is computed."""

from __future__ import annotations

from edgecompress.errors import RecipeError
from edgecompress.types.recipe import BUNDLE, KV_CACHES, Recipe
from edgecompress.types.target import Target


def check_gpu(recipe: Recipe) -> None:
    """Raises RecipeError for settings that this version does not support on GPUs."""
    if recipe.runtime.kernels not in ("auto", "none"):
        raise RecipeError("--kernels is for ONNX Runtime on a CPU, not for GPUs", hint="Omit --kernels.")
    if recipe.format != BUNDLE:
        raise RecipeError(f"this version does not support --format {recipe.format} for GPUs", hint="Omit --format.")
    if not recipe.quantize.symmetric:
        raise RecipeError("TensorRT supports symmetric weights only", hint="Omit --zero-points.")
    if recipe.quantize.kv_cache != KV_CACHES[0]:
        raise RecipeError(f"a GPU's KV cache is float16, not {recipe.quantize.kv_cache}", hint="Omit --kv-cache.")


def check_no_compatibility(recipe: Recipe, backend: str) -> None:
    """Raises RecipeError for settings that only TensorRT's engines have."""
    if recipe.engine.hardware_compatibility != "none" or recipe.engine.version_compatible:
        raise RecipeError(
            f"--engine-compatible and --engine-any-version do not apply to {backend}",
            hint="Omit them, or use --backend tensorrt.",
        )


def opset(target: Target) -> int:
    """The opset of captured graphs, the same for all targets."""
    from edgecompress.lower.standard import CAPTURED_OPSET  # heavy

    return CAPTURED_OPSET
