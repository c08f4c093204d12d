"""How a student is taught, as its kind says."""

from __future__ import annotations

from edgecompress.errors import StudentError
from edgecompress.kinds import kinds
from edgecompress.kinds.base import DistillModule
from edgecompress.types.distill import DistillTask
from edgecompress.types.student import Student


def distill_task(student: Student) -> DistillTask:
    """Raises StudentError for a student that is not taught."""
    return distill_module(student).TASKS[student.task]


def distill_module(student: Student) -> DistillModule:
    """Of the student's kind. Raises StudentError if it has none, or if that says nothing of the student's task."""
    # For whoever merges this: as soon as a student says its kind, the one to ask is find_kind(student.kind).
    modules = [kind.distill for kind in kinds().values() if kind.has("distill")]
    found = next((module for module in modules if student.task in module.TASKS), None)
    if found is None:
        tasks = ", ".join(task for module in modules for task in module.TASKS)
        raise StudentError(f"a student of task {student.task} cannot be taught", hint=f"What can be: {tasks}.")
    return found
