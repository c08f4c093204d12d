"""A folder whose config.json has the model_type "adder" and its two weights."""

from __future__ import annotations

from edgecompress.formats.manifest import file_sha256
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Student
from edgecompress.types.task import Task
from tests.toy_kind.tasks import TASKS


def matches(checkpoint: Checkpoint, task: str | None) -> Task | None:
    return TASKS["addition"] if checkpoint.architecture == "adder" else None


def read(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    return Student(
        source=recipe.source,
        path=checkpoint.folder,
        architecture="adder",
        task=task.name,
        parameters=2,
        files={"config.json": file_sha256(checkpoint.folder / "config.json")},
    )
