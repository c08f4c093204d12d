"""The tasks of adders."""

from __future__ import annotations

from edgecompress.types.task import Task

TASKS = {"addition": Task(name="addition", auto_class="", outputs=("sum",), metric="largest error")}
