"""A distillation's recipe from TOML, and what in it makes no sense."""

from __future__ import annotations

from pathlib import Path

from edgecompress.errors import RecipeError, nearest
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.provenance import validate_provenance
from edgecompress.formats.recipe import read_toml
from edgecompress.types.distill import DISTANCES, METHODS, ROUNDINGS, SCHEDULES, DistillRecipe

_WAY_OUT = "A whole recipe is `[student]` and `layers = 3` below it."


def read_distill_recipe(path: Path) -> DistillRecipe:
    """Raises RecipeError if the file is not there, not TOML, or says something this version does not know."""
    data = read_toml(path, DistillRecipe.schema_version, f"Give --student a TOML file. {_WAY_OUT}")
    try:
        recipe = from_jsonable(DistillRecipe, data)
    except ValueError as error:
        raise RecipeError(f"the recipe {path} is not valid: {error}", hint=_WAY_OUT) from error
    validate_distill_recipe(recipe)
    return recipe


def validate_distill_recipe(recipe: DistillRecipe) -> None:
    """Raises RecipeError for what no teacher and no machine could fulfil."""
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
    rules = (
        (student.start is None or not shaped, "a student that starts from a checkpoint has its own layers and width"),
        (layers != () and layers != 0, "a student has at least one layer"),
        (not isinstance(layers, int) or layers > 0, f"layers are a number from 1, or a list, not {layers}"),
        (list(chosen) == sorted(set(chosen)), f"layers are each named once, in ascending order, not {list(chosen)}"),
        (min(chosen, default=0) >= 0, "layers are counted from 0"),
        (not any(sizes) or not chosen, "layers of the teacher have its width: give a number of layers beside `hidden`"),
        (bool(student.hidden) or not any(sizes), "intermediate and heads are those of a new width: give `hidden`"),
        (all(size is None or size > 0 for size in sizes), "widths and heads are above 0"),
        (all(weight is None or weight >= 0 for weight in weights), "weights of a loss are at least 0"),
        (any(weights) or set(weights) == {None}, "every weight of the loss is 0: nothing is learned"),
        (loss.temperature > 0, f"temperature is above 0, not {loss.temperature:g}"),
        ((loss.relation_heads or 1) > 0, "relation_heads are at least 1"),
        (training.steps is None or training.minutes is None, "steps and minutes are both given: one says how long"),
        (training.steps is None or training.steps >= 1, f"steps are at least 1, not {training.steps}"),
        (training.minutes is None or training.minutes > 0, f"minutes are above 0, not {training.minutes}"),
        (training.batch >= 1, f"a batch is at least 1, not {training.batch}"),
        ((training.learning_rate or 1) > 0, f"learning_rate is above 0, not {training.learning_rate}"),
        (0 <= training.warmup < 1, f"warmup is a share of the steps in [0, 1), not {training.warmup:g}"),
        (training.weight_decay >= 0, "weight_decay is at least 0"),
        (0 <= training.dropout < 1, f"dropout is in [0, 1), not {training.dropout:g}"),
        (training.max_length_tokens >= 8, "max_length_tokens is at least 8"),
        (16 <= block <= 256 and block & (block - 1) == 0, f"block_size is a power of two from 16 to 256, not {block}"),
    )  # fmt: skip
    for holds, message in rules:
        if not holds:
            raise RecipeError(message, hint=_WAY_OUT)
