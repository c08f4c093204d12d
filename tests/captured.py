"""Captures a student as an export does."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edgecompress.kinds import find_kind
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student


def capture(student: Student, folder: Path, *, opset: int) -> Graph:
    return cast("Graph", find_kind(student.kind).plug_in.part("export").capture(student, folder, opset=opset))
