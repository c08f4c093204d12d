"""Reads the record that `distill` writes, and compares it with the weights."""

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

_RECIPE = "distill.toml"  # next to the record: the recipe with every default filled in


@dataclass(frozen=True, kw_only=True)
class DistillationLineage:
    """``start``: the student's first checkpoint, if the recipe next to the record names one."""

    record: Distillation
    teaching: Teaching
    start: str | None


def read_distillation(folder: Path, files: Mapping[str, str] | None) -> tuple[DistillationLineage | None, str | None]:
    """The record of ``folder``, and a problem with it. ``files`` (name -> sha256): None if they were not hashed.

    The record is verified only if the folder has exactly the weights that it names, with the same hashes.
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
    taken = "so its statements count as declared only"
    weights = {name: sha256 for name, sha256 in files.items() if name.endswith((".safetensors", ".bin"))}
    if not record.weights:
        return f"{RECORD} names no weights, {taken}"
    for name, sha256 in record.weights.items():
        if weights.get(name) != sha256:
            what = f"has another hash for {name}" if name in weights else f"names {name}, which is missing"
            return f"{RECORD} {what}, {taken}"
    more = sorted(name for name in set(weights) - set(record.weights) if "/" not in name)
    return f"{RECORD} does not list the weights {more[0]}, {taken}" if more else None


def _start(folder: Path, record: Distillation) -> str | None:
    """``start`` of the recipe next to the record, if its hash is the one in the record."""
    try:
        recipe = read_distill_recipe(folder / _RECIPE)
    except RecipeError:
        return None
    if hashlib.sha256(dumps(recipe).encode()).hexdigest() != record.recipe_sha256:
        return None
    return recipe.student.start


def terms_of(recipe: ProvenanceRecipe, *, of: str, where: str) -> Terms | None:
    """The terms that a recipe declares for ``of``; None if it declares none."""
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
