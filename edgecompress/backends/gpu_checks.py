"""What plans for a GPU have in common; light, since they are asked before anything is computed."""

from __future__ import annotations

from edgecompress.errors import RecipeError
from edgecompress.types.recipe import BUNDLE, KV_CACHES, Recipe
from edgecompress.types.target import Target


def check_gpu(recipe: Recipe) -> None:
    """Raises RecipeError for what nothing for a GPU can be in this version."""
    if recipe.runtime.kernels not in ("auto", "none"):
        raise RecipeError("our kernels are for ONNX Runtime on a CPU", hint="Leave out --kernels.")
    if recipe.format != BUNDLE:
        raise RecipeError(
            f"nothing for a GPU is exported as {recipe.format} by this version", hint="Leave out --format."
        )
    if not recipe.quantize.symmetric:
        raise RecipeError("TensorRT takes weights around zero only", hint="Leave out --zero-points.")
    if recipe.quantize.kv_cache != KV_CACHES[0]:
        raise RecipeError(f"a GPU's KV cache is float16, not {recipe.quantize.kv_cache}", hint="Leave out --kv-cache.")


def check_no_compatibility(recipe: Recipe, backend: str) -> None:
    """Raises RecipeError for choices that only TensorRT's engines have."""
    if recipe.engine.hardware_compatibility != "none" or recipe.engine.version_compatible:
        raise RecipeError(
            f"an engine of {backend} has no compatibility to choose",
            hint="Leave out --engine-compatible and --engine-any-version, or give --backend tensorrt.",
        )


def opset(target: Target) -> int:
    """Of captured graphs: one for all, whatever the target has."""
    from edgecompress.lower.standard import CAPTURED_OPSET  # heavy

    return CAPTURED_OPSET
