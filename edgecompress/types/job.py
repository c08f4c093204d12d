"""One export, as its kind and its backend see it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgecompress.types.recipe import Recipe
from edgecompress.types.student import Student
from edgecompress.types.target import Target


class Clock(Protocol):
    """Tells the user which stage is running, and records how long each took."""

    def stage(self, name: str, detail: str = "") -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    recipe: Recipe  # resolved: values from the checkpoint and the target are filled in
    student: Student
    target: Target
    candidates: tuple[str, ...]  # precision names
    custom_ops: bool = True  # False: the bundle is written for a program that cannot load our kernels
    measured_here: bool  # False: this machine does not match the target, so no latency is measured
    threads: int  # of sessions on this machine
    folder: Path  # scratch folder on the output's disk
    clock: Clock
