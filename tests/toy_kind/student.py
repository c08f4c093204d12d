"""A folder whose config.json has the model_type "adder" and its two weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.formats.manifest import file_sha256
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Student
from edgecompress.types.task import Task
from tests.toy_kind.tasks import TASKS


def matches(folder: Path, config: Mapping[str, Any], task: str | None) -> Task | None:
    return TASKS["addition"] if config["model_type"] == "adder" else None


def read(folder: Path, config: Mapping[str, Any], task: Task, recipe: StudentRecipe) -> Student:
    return Student(
        source=recipe.source,
        path=folder,
        architecture="adder",
        task=task.name,
        parameters=2,
        files={"config.json": file_sha256(folder / "config.json")},
    )
