"""What an export for a GPU resolves from the student, and what none of this version can be."""

from __future__ import annotations

from dataclasses import replace

from edgecompress.errors import RecipeError
from edgecompress.types.recipe import TENSORRT, EngineRecipe, Recipe
from edgecompress.types.student import Student

_TEXTS, _ROWS = (1, 8, 32), (1, 1, 4)
_LARGEST_CONTEXT = 4096  # unless more is asked for: a cache is as long as it is built, whatever of it is used
_LARGEST_PREFILL = 512  # new tokens of a decoder's call


def resolve_engine(recipe: EngineRecipe, student: Student) -> EngineRecipe:
    """The profile with everything filled in that the student decides."""
    most, lengths = student.max_length_tokens, recipe.length_tokens
    if student.is_decoder:
        context = recipe.context_tokens or min(most or _LARGEST_CONTEXT, _LARGEST_CONTEXT)
        lengths = lengths or (1, 1, min(context, _LARGEST_PREFILL))
        return replace(recipe, batch=recipe.batch or _ROWS, length_tokens=lengths, context_tokens=context)
    if most is not None and lengths is None:
        lengths = (1, max(1, most // 2), most)
    return replace(recipe, batch=recipe.batch or _TEXTS, length_tokens=lengths)


def cuda_precision(wanted: str) -> str:
    """What ONNX Runtime's CUDA provider is given. Raises RecipeError for anything else than "auto" and fp16."""
    if wanted not in ("auto", "fp16"):
        raise RecipeError(
            f"a graph for ONNX Runtime's CUDA provider is not made as {wanted} by this version",
            hint="It can be fp16; quantized weights are for --backend tensorrt-rtx or tensorrt.",
        )
    return "fp16"


def check_engine(recipe: Recipe, student: Student) -> None:
    """Raises RecipeError for what nothing for a GPU can be in this version. ``recipe.engine`` is resolved."""
    if recipe.runtime.kernels not in ("auto", "none"):
        raise RecipeError("our kernels are for ONNX Runtime on a CPU", hint="Leave out --kernels.")
    if recipe.format != "bundle":
        raise RecipeError(
            f"nothing for a GPU is exported as {recipe.format} by this version", hint="Leave out --format."
        )
    if not recipe.quantize.symmetric:
        raise RecipeError("TensorRT takes weights around zero only", hint="Leave out --zero-points.")
    engine, most = recipe.engine, student.max_length_tokens
    if recipe.backend != TENSORRT and (engine.hardware_compatibility != "none" or engine.version_compatible):
        raise RecipeError(
            f"an engine of {recipe.backend} has no compatibility to choose",
            hint="Leave out --engine-compatible and --engine-any-version, or give --backend tensorrt.",
        )
    if not student.is_decoder and engine.context_tokens is not None:
        raise RecipeError(
            f"a context is a decoder's, and this student's task is {student.task}",
            hint="Leave out --engine-context.",
        )
    if student.is_decoder and recipe.quantize.kv_cache != "fp32":
        raise RecipeError(f"a GPU's KV cache is float16, not {recipe.quantize.kv_cache}", hint="Leave out --kv-cache.")
    longest = engine.length_tokens[2] if engine.length_tokens is not None else None
    if student.is_decoder and engine.context_tokens is not None:
        if most is not None and engine.context_tokens > most:
            raise RecipeError(
                f"the engine's context is {engine.context_tokens} tokens, and the student takes {most}",
                hint=f"Give --engine-context up to {most}.",
            )
        most = engine.context_tokens
    if most is not None and longest is not None and longest > most:
        raise RecipeError(
            f"the engine's profile goes to {longest} tokens, and "
            f"{'its context is' if student.is_decoder else 'the student takes'} {most}",
            hint=f"Give --engine-tokens up to {most}.",
        )
