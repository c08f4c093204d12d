"""Finds how to train a student: its kind's distill module."""

from __future__ import annotations

from edgecompress.errors import StudentError
from edgecompress.kinds import kinds
from edgecompress.kinds.base import DistillModule
from edgecompress.types.distill import DistillTask
from edgecompress.types.student import Student


def distill_task(student: Student) -> DistillTask:
    """The training defaults of the student's task. Raises StudentError if the task has none."""
    return distill_module(student).TASKS[student.task]


def distill_module(student: Student) -> DistillModule:
    """The module of the student's kind. Raises StudentError if there is none for the student's task."""
    modules = [kind.distill for kind in kinds().values() if kind.has("distill")]
    found = next((module for module in modules if student.task in module.TASKS), None)
    if found is None:
        tasks = ", ".join(task for module in modules for task in module.TASKS)
        raise StudentError(f"a student of task {student.task} cannot be distilled", hint=f"Supported tasks: {tasks}.")
    return found
