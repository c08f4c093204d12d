"""The records that `distill` leaves in a student's folder, held against its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import RecipeError
from edgecompress.formats.codec import dumps, from_jsonable
from edgecompress.formats.distill_recipe import read_distill_recipe
from edgecompress.types.distill import RECORD, Distillation
from edgecompress.types.provenance import ProvenanceRecipe, Teaching, Terms

_RECIPE = "distill.toml"  # beside the record: what it was made by, with every choice filled in


@dataclass(frozen=True, kw_only=True)
class DistillationLineage:
    """``start``: the checkpoint whose weights the student began with, if the recipe beside the record names one."""

    record: Distillation
    teaching: Teaching
    start: str | None


def read_distillation(folder: Path, files: Mapping[str, str] | None) -> tuple[DistillationLineage | None, str | None]:
    """The record of ``folder`` and what is wrong with it. ``files`` (name -> sha256): None where they were not hashed.

    It is verified only if every weight that it names is there with that hash, and no other weights are.
    """
    path = folder / RECORD
    if not path.is_file():
        return None, None
    content = path.read_bytes()
    try:
        record = from_jsonable(Distillation, json.loads(content))
    except ValueError as error:
        return None, f"{RECORD} of {folder.name} cannot be read: {str(error).splitlines()[0]}"
    problem = _mismatch(record, files) if files is not None else None
    teaching = Teaching(
        verified=files is not None and problem is None,
        sha256=hashlib.sha256(content).hexdigest(),
        teacher=record.teacher.name,
        method=record.method,
        data=record.data.name,
        data_sha256=record.data.sha256,
        recipe_sha256=record.recipe_sha256,
        tool_version=record.tool_version,
        responses=record.data.responses,
    )
    return DistillationLineage(record=record, teaching=teaching, start=_start(folder, record)), problem


def _mismatch(record: Distillation, files: Mapping[str, str]) -> str | None:
    taken = "so what it says is only taken as declared"
    weights = {name: sha256 for name, sha256 in files.items() if name.endswith((".safetensors", ".bin"))}
    if not record.weights:
        return f"{RECORD} names no weights, {taken}"
    for name, sha256 in record.weights.items():
        if weights.get(name) != sha256:
            what = "the hash of other weights than" if name in weights else "weights that are not here,"
            return f"{RECORD} has {what} {name}, {taken}"
    more = sorted(name for name in set(weights) - set(record.weights) if "/" not in name)
    return f"{RECORD} does not know the weights {more[0]}, {taken}" if more else None


def _start(folder: Path, record: Distillation) -> str | None:
    """Of the recipe beside the record, if it is the one that the record names."""
    try:
        recipe = read_distill_recipe(folder / _RECIPE)
    except RecipeError:
        return None
    if hashlib.sha256(dumps(recipe).encode()).hexdigest() != record.recipe_sha256:
        return None
    return recipe.student.start


def terms_of(recipe: ProvenanceRecipe, *, of: str, where: str) -> Terms | None:
    """What a recipe declares of ``of``; None if it is nothing."""
    terms = Terms(
        of=of,
        where=where,
        status=recipe.status,
        teacher=recipe.teacher,
        data=recipe.data,
        url=recipe.terms_url,
        retrieved=recipe.terms_retrieved,
        sha256=recipe.terms_sha256,
        conditions=recipe.conditions,
        name_prefix=recipe.name_prefix,
    )
    return None if terms == Terms(of=of, where=where) else terms
