"""Reads, checks and writes recipes as TOML."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.errors import RecipeError, nearest
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.provenance import validate_provenance
from edgecompress.types.distill import DistillRecipe
from edgecompress.types.precision import FP16
from edgecompress.types.recipe import (
    ACCURACY_LEVELS,
    BLOCK_METHODS,
    CALIBRATION_METHODS,
    HARDWARE_COMPATIBILITY,
    KERNELS,
    KV_CACHES,
    SCHEMA_VERSION,
    Recipe,
)


def read_toml(path: Path, newest: int, hint: str) -> dict[str, Any]:
    """Read a recipe's file. Raises RecipeError if it is missing, not TOML, or of a schema above ``newest``."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}", hint=hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}", hint="Give a TOML file in UTF-8.") from error
    version = data.get("schema_version", newest)
    if isinstance(version, int) and version > newest:
        raise RecipeError(
            f"the recipe {path} is for a newer edgecompress (schema {version}; this one reads {newest})",
            hint="Upgrade edgecompress.",
        )
    return data


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises RecipeError if it is missing, not TOML, or has a key or value that is not valid."""
    data = read_toml(path, SCHEMA_VERSION, "Give --recipe a TOML file.")
    try:
        recipe = from_jsonable(Recipe, data)
    except ValueError as error:
        key = str(error).rpartition("'")[0].rpartition("'")[2].rpartition(".")[2]
        hint = nearest(key, _keys(Recipe)) if "unknown key" in str(error) else ""
        raise RecipeError(
            f"the recipe {path} is not valid: {error}.{hint}",
            hint="Compare it with the recipe that `edgecompress export --dry-run` prints.",
        ) from error
    validate_recipe(recipe)
    return recipe


def validate_recipe(recipe: Recipe) -> None:
    """Raises RecipeError for a value that is not valid. Names of plug-ins are not checked here."""
    _one_of("quantization method", recipe.quantize.method, BLOCK_METHODS)
    if recipe.quantize.kv_cache == FP16:
        raise RecipeError(
            "the KV cache cannot be fp16: ONNX Runtime's CPU GroupQueryAttention has no kernel for a float16 cache "
            "with float32 activations, and would convert the whole cache for every token",
            hint="Use --kv-cache int8 (a quarter of fp32's memory) or --kv-cache fp32.",
        )
    _one_of("KV cache", recipe.quantize.kv_cache, KV_CACHES)
    _one_of("hardware compatibility", recipe.engine.hardware_compatibility, HARDWARE_COMPATIBILITY)
    _one_of("calibration method", recipe.calibration.method, CALIBRATION_METHODS)
    validate_provenance(recipe.provenance)
    quality, quantize, calibration = recipe.quality, recipe.quantize, recipe.calibration
    block = quantize.block_size
    rules = (
        (0 < quality.min_fidelity <= 1, f"min_fidelity must be a cosine in (0, 1], not {quality.min_fidelity:g}"),
        (quality.max_kl >= 0, f"max_kl must be at least 0, not {quality.max_kl:g}"),
        (0 <= quality.min_top1 <= 1, f"min_top1 must be a share in [0, 1], not {quality.min_top1:g}"),
        (
            quality.max_perplexity_ratio > 0,
            f"max_perplexity_ratio must be above 0, not {quality.max_perplexity_ratio:g}",
        ),
        (quality.samples >= 2, f"quality.samples must be at least 2, not {quality.samples}"),
        (calibration.samples >= 1, f"calibration.samples must be at least 1, not {calibration.samples}"),
        (calibration.max_length_tokens >= 8, "calibration.max_length_tokens must be at least 8"),
        (
            50 < calibration.percentile <= 100,
            f"calibration.percentile must be in (50, 100], not {calibration.percentile:g}",
        ),
        (0 <= quantize.smooth_alpha <= 1, f"smooth_alpha must be in [0, 1], not {quantize.smooth_alpha:g}"),
        (
            16 <= block <= 256 and block & (block - 1) == 0,
            f"block_size must be a power of two from 16 to 256, not {block}",
        ),
        (quantize.head_bits in (None, 4, 8), f"head_bits must be 4 or 8, not {quantize.head_bits}"),
        (quantize.embedding_bits in (None, 4, 8), f"embedding_bits must be 4 or 8, not {quantize.embedding_bits}"),
        (4 <= quantize.mean_bits <= 8, f"mean_bits must be from 4 to 8, not {quantize.mean_bits:g}"),
        (
            quantize.accuracy_level in ("auto", *ACCURACY_LEVELS),
            f"accuracy_level must be auto, 0, 1 or 4, not {quantize.accuracy_level}",
        ),
        (
            recipe.runtime.kernels in ("auto", "none") or set(recipe.runtime.kernels.split(",")) <= set(KERNELS),
            f"kernels must be auto, none or some of {', '.join(KERNELS)}, not '{recipe.runtime.kernels}'",
        ),
        (_least(recipe.runtime.threads, 1), "threads must be at least 1"),
        (_least(recipe.student.max_length_tokens, 8), "max_length_tokens must be at least 8"),
        (
            recipe.engine.batch is None or _ascends(recipe.engine.batch),
            f"engine.batch must be min,opt,max in ascending order from 1, not {recipe.engine.batch}",
        ),
        (recipe.engine.workspace_mib >= 16, "engine.workspace_mib must be at least 16"),
        (_least(recipe.engine.context_tokens, 8), "engine.context_tokens must be at least 8"),
        (
            recipe.engine.length_tokens is None or _ascends(recipe.engine.length_tokens),
            f"engine.length_tokens must be min,opt,max in ascending order from 1, not {recipe.engine.length_tokens}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise RecipeError(message, hint="See `edgecompress export --help`.")


def _least(value: int | None, bound: int) -> bool:
    """Whether a number that may be unset is at least ``bound``; 0 is a number."""
    return value is None or value >= bound


def _ascends(numbers: tuple[int, ...]) -> bool:
    return numbers[0] >= 1 and list(numbers) == sorted(numbers)


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"no {what} named '{value}'.{nearest(value, known)}", hint=f"Known: {', '.join(known)}.")


def _keys(cls: type) -> list[str]:
    names = []
    for f in dataclasses.fields(cls):
        names.append(f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            names += _keys(type(default))
    return names


def recipe_toml(recipe: Recipe | DistillRecipe) -> str:
    """The recipe as TOML: scalars first, then one table per group; None and empty tables are left out."""
    lines, tables = [], []
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if dataclasses.is_dataclass(value):
            tables.append((f.name, value))
        elif value is not None:
            lines.append(f"{f.name} = {_toml(value)}")
    for name, table in tables:
        lines += ["", f"[{name}]"]
        for f in dataclasses.fields(table):
            value = getattr(table, f.name)
            if value is not None and value != {}:
                lines.append(f"{f.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(str(key))} = {_toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
