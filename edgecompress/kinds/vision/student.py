"""Whether a checkpoint is an encoder of images."""

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
    """Raises StudentError for a task of images and a checkpoint of texts, or the other way round."""
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
            hint=f"It can do {HIDDEN_STATES}.",
        )
    return TASKS[task]


def _cannot_do(architecture: str, task: str | None) -> StudentError:
    return StudentError(f"'{architecture}' cannot do {task}", hint="Leave --task out to take the checkpoint's own.")


def read(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    """Raises StudentError for weights that are damaged."""
    return replace(read_student(checkpoint, task, recipe), labels=labels_of(checkpoint.config))
