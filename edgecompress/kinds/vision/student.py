"""Recognizes and reads image encoder checkpoints."""

from __future__ import annotations

from dataclasses import replace

from edgecompress.capture.checkpoint import head_of, labels_of, read_student
from edgecompress.errors import StudentError
from edgecompress.kinds.vision.tasks import HIDDEN_STATES, TASKS
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Student
from edgecompress.types.task import Task

_ARCHITECTURES = (
    "vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin", "dinov3_vit", "ijepa", "data2vec-vision",
)  # fmt: skip


def matches(checkpoint: Checkpoint, task: str | None) -> Task | None:
    """Raises StudentError for an image task on a text checkpoint, or a text task on an image checkpoint."""
    architecture = checkpoint.architecture
    if architecture not in _ARCHITECTURES:
        if task in TASKS:
            raise _cannot_do(architecture, task)
        return None
    found = next((each for each in TASKS.values() if each.fits(head_of(checkpoint.config))), None)
    if task is None:
        return found or TASKS[HIDDEN_STATES]
    if task not in TASKS:
        raise _cannot_do(architecture, task)
    if task != HIDDEN_STATES and TASKS[task] != found:
        raise StudentError(
            f"the checkpoint ({head_of(checkpoint.config) or architecture}) has no head for {task}",
            hint=f"Give --task {HIDDEN_STATES}.",
        )
    return TASKS[task]


def _cannot_do(architecture: str, task: str | None) -> StudentError:
    return StudentError(f"'{architecture}' cannot do {task}", hint="Omit --task to use the checkpoint's own task.")


def read(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    """Read the checkpoint. Raises StudentError for damaged weights."""
    return replace(read_student(checkpoint, task, recipe), labels=labels_of(checkpoint.config))
