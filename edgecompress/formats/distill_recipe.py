"""Reads a distillation recipe from TOML and checks its values."""

from __future__ import annotations

from pathlib import Path

from edgecompress.errors import RecipeError, nearest
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.provenance import validate_provenance
from edgecompress.formats.recipe import read_toml
from edgecompress.types.distill import DISTANCES, METHODS, ROUNDINGS, SCHEDULES, DistillRecipe

_HINT = "Compare it with a minimal recipe: `[student]` with `layers = 3` below it."


def read_distill_recipe(path: Path) -> DistillRecipe:
    """Read a recipe. Raises RecipeError if it is missing, not TOML, or has a key or value that is not valid."""
    data = read_toml(path, DistillRecipe.schema_version, f"Give --student a TOML file. {_HINT}")
    try:
        recipe = from_jsonable(DistillRecipe, data)
    except ValueError as error:
        raise RecipeError(f"the recipe {path} is not valid: {error}", hint=_HINT) from error
    validate_distill_recipe(recipe)
    return recipe


def validate_distill_recipe(recipe: DistillRecipe) -> None:
    """Raises RecipeError for values that are not valid or contradict each other."""
    student, loss, training = recipe.student, recipe.loss, recipe.training
    for what, value, known in (
        ("method", recipe.method, METHODS),
        ("schedule", training.schedule, SCHEDULES),
        ("rounding", training.rounding, ROUNDINGS),
        ("distance", loss.distance, DISTANCES),
    ):
        if value is not None and value not in known:
            hint = f"Known: {', '.join(known)}."
            raise RecipeError(f"no {what} named '{value}'.{nearest(value, known)}", hint=hint)
    validate_provenance(recipe.provenance)
    layers = student.layers
    chosen = layers if isinstance(layers, tuple) else ()
    sizes = (student.hidden, student.intermediate, student.heads, student.kv_heads)
    shaped = layers is not None or any(sizes)
    weights = (loss.logits, loss.hidden, loss.relations, loss.embedding, loss.similarity, loss.cross_entropy)
    block = training.block_size
    rate = training.learning_rate
    rules = (
        (student.start is None or not shaped, "student.start has its own layers and width: leave them out"),
        (layers != () and layers != 0, "student.layers must be at least one layer"),
        (not isinstance(layers, int) or layers > 0, f"student.layers must be a number from 1, or a list, not {layers}"),
        (list(chosen) == sorted(set(chosen)), f"student.layers must be in ascending order, not {list(chosen)}"),
        (min(chosen, default=0) >= 0, "student.layers must not be negative: layers are counted from 0"),
        (not any(sizes) or not chosen, "student.layers cannot be a list beside `hidden`: give a number of layers"),
        (bool(student.hidden) or not any(sizes), "student.intermediate and heads need a new width: give `hidden`"),
        (all(size is None or size > 0 for size in sizes), "student widths and heads must be above 0"),
        (all(weight is None or weight >= 0 for weight in weights), "loss weights must be at least 0"),
        (any(weights) or set(weights) == {None}, "all loss weights are 0, so nothing is learned"),
        (loss.temperature > 0, f"loss.temperature must be above 0, not {loss.temperature:g}"),
        (loss.relation_heads is None or loss.relation_heads >= 1, "loss.relation_heads must be at least 1"),
        (training.steps is None or training.minutes is None, "training.steps and minutes are both given: give one"),
        (training.steps is None or training.steps >= 1, f"training.steps must be at least 1, not {training.steps}"),
        (training.minutes is None or training.minutes > 0, f"training.minutes must be above 0, not {training.minutes}"),
        (training.batch >= 1, f"training.batch must be at least 1, not {training.batch}"),
        (rate is None or rate > 0, f"training.learning_rate must be above 0, not {rate}"),
        (0 <= training.warmup < 1, f"training.warmup must be a share of the steps in [0, 1), not {training.warmup:g}"),
        (training.weight_decay >= 0, "training.weight_decay must be at least 0"),
        (0 <= training.dropout < 1, f"training.dropout must be in [0, 1), not {training.dropout:g}"),
        (training.max_length_tokens >= 8, "training.max_length_tokens must be at least 8"),
        (16 <= block <= 256 and block & (block - 1) == 0, f"block_size must be a power of two, 16 to 256, not {block}"),
    )  # fmt: skip
    for holds, message in rules:
        if not holds:
            raise RecipeError(message, hint=_HINT)
