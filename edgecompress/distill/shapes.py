"""The untrained student: layers of its teacher (as in DistilBERT, arXiv 1910.01108), or a smaller model of its kind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from edgecompress.errors import RecipeError
from edgecompress.types.distill import NewStudentRecipe
from edgecompress.types.student import Student

_WIDTHS = {
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}
_HALF = 2


def evenly_spread(count: int, of: int) -> tuple[int, ...]:
    """``count`` of ``of`` layers, with the first and the last: 0, 2, 4, 7, 9, 11 for 6 of 12. For one, the last."""
    if count == 1:
        return (of - 1,)
    return tuple(round(i * (of - 1) / (count - 1)) for i in range(count))


def taught_by(layers: int, of: int) -> tuple[int, ...]:
    """The teacher layer that each student layer imitates: the last of an equal share of them."""
    return tuple(round((i + 1) * of / layers) - 1 for i in range(layers))


def layers_of(model: torch.nn.Module) -> int:
    config: Any = model.config
    return int(config.num_hidden_layers)


def resolve(recipe: NewStudentRecipe, teacher_layers: int) -> NewStudentRecipe:
    """Fill in the layers to keep, or the number of new layers. Raises RecipeError for layers the teacher lacks."""
    if recipe.start is not None:
        return recipe
    layers = recipe.layers
    if layers is None:
        layers = teacher_layers if recipe.hidden else max(teacher_layers // _HALF, 1)
    if recipe.hidden is not None:
        return replace(recipe, layers=layers)
    if isinstance(layers, int):
        if layers > teacher_layers:
            raise _beyond(f"[student] asks for {layers} layers", teacher_layers)
        layers = evenly_spread(layers, teacher_layers)
    if max(layers) >= teacher_layers:
        raise _beyond(f"[student] asks for layer {max(layers)}", teacher_layers)
    return replace(recipe, layers=layers)


def _beyond(asked: str, teacher_layers: int) -> RecipeError:
    return RecipeError(
        f"{asked}, but the teacher has {teacher_layers}",
        hint=f"The teacher's layers are 0 to {teacher_layers - 1}.",
    )


def make_student(recipe: NewStudentRecipe, teacher: torch.nn.Module, described: Student, seed: int) -> torch.nn.Module:
    """Build the student of a resolved recipe. Raises RecipeError if the architecture does not allow it."""
    if recipe.hidden is not None:
        return _new(recipe, teacher, seed)
    assert isinstance(recipe.layers, tuple)
    return keep_layers(teacher, recipe.layers, described.architecture)


def keep_layers(teacher: torch.nn.Module, kept: Sequence[int], architecture: str) -> torch.nn.Module:
    """A copy with only these layers, and a config that matches."""
    student = copy.deepcopy(teacher)
    total = layers_of(teacher)
    stacks = [
        (parent, name, child)
        for parent in student.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == total
    ]
    kinds = {type(layer) for _, _, child in stacks for layer in child}
    if len(stacks) != 1 or len(kinds) > 1:
        raise RecipeError(
            f"layers of '{architecture}' cannot be removed: it has no single list of {total} layers",
            hint='Bring your own student: start = "FOLDER" in [student].',
        )
    parent, name, rows = stacks[0]
    chosen = torch.nn.ModuleList(rows[index] for index in kept)
    setattr(parent, name, chosen)
    for new, old in enumerate(kept):
        for module in chosen[new].modules():
            if getattr(module, "layer_idx", None) == old:
                vars(module)["layer_idx"] = new
    _cut_config(student.config, kept, total)
    return student.requires_grad_(True)


def _cut_config(config: Any, kept: Sequence[int], total: int) -> None:
    """Set the number of layers, and shorten every list with one entry per layer."""
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total and not key.startswith("_"):
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def _new(recipe: NewStudentRecipe, teacher: torch.nn.Module, seed: int) -> torch.nn.Module:
    old: Any = teacher.config
    config = copy.deepcopy(old)
    assert isinstance(recipe.layers, int)
    assert recipe.hidden is not None
    given = {key: getattr(recipe, key) for key in _WIDTHS}
    if given["intermediate"] is None and hasattr(old, "intermediate_size"):
        given["intermediate"] = max(round(old.intermediate_size * recipe.hidden / old.hidden_size / 64), 1) * 64
    for key, name in _WIDTHS.items():
        if given[key] is None:
            continue
        if not hasattr(old, name):
            raise RecipeError(f"the teacher's config.json has no {name}", hint=f"Omit {key} in [student].")
        setattr(config, name, given[key])
    if recipe.layers > len(getattr(config, "layer_types", None) or range(recipe.layers)):
        raise _beyond(f"[student] asks for {recipe.layers} layers", int(old.num_hidden_layers))
    _cut_config(config, range(recipe.layers), int(old.num_hidden_layers))
    if config.hidden_size % config.num_attention_heads:
        raise RecipeError(
            f"{config.num_attention_heads} heads do not divide a width of {config.hidden_size}",
            hint="Change `hidden` or `heads` in [student].",
        )
    kv_heads = getattr(config, "num_key_value_heads", None)
    if kv_heads and config.num_attention_heads % kv_heads:
        raise RecipeError(
            f"{kv_heads} key-value heads do not divide {config.num_attention_heads} heads",
            hint="Set `kv_heads` in [student].",
        )
    torch.manual_seed(seed)
    auto: Any = type(teacher)
    model: torch.nn.Module = (
        auto(config) if hasattr(auto, "config_class") else transformers.AutoModel.from_config(config)
    )
    return model.to(torch.float32).requires_grad_(True)
