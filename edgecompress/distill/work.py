"""The work folder next to the output: a training's checkpoints, and what identifies the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import OutputError, UsageError
from edgecompress.formats.codec import dumps

_RUN, _SECONDS, _STATE = "run.json", "seconds", "trainer_state.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training. ``of``: name -> value of what a resumed run must have in common with it."""

    of: Mapping[str, str]
    steps: int


class WorkFolder:
    """``.<output>.distill``. It exists during a training and after an interrupted one."""

    def __init__(self, output: Path) -> None:
        output = output.absolute()
        self.path = output.parent / f".{output.name}.distill"

    def begin(self, *, resume: bool) -> Run | None:
        """The training to resume, or None. Raises UsageError, OutputError."""
        run = self._read()
        if run is None:
            if resume:
                raise UsageError(f"nothing to resume: no interrupted training at {self.path}", hint="Omit --resume.")
            shutil.rmtree(self.path, ignore_errors=True)
            return None
        if not resume:
            raise OutputError(
                f"found an interrupted training: {self.path}",
                hint="Use --resume to continue it. To start over, remove that folder or give another --output.",
            )
        return run

    def write(self, run: Run) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f".{_RUN}.part"
        part.write_text(dumps(run), encoding="utf-8")
        part.replace(self.path / _RUN)

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint: Trainer writes the state file last."""
        found = [path for path in self.path.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
        for path in sorted(found, key=lambda path: -int(path.name.partition("-")[2])):
            try:
                json.loads((path / _STATE).read_text(encoding="utf-8"))
                return path
            except (OSError, ValueError):
                shutil.rmtree(path, ignore_errors=True)
        return None

    @property
    def seconds(self) -> float:
        """Time spent up to the last checkpoint."""
        try:
            return float((self.path / _SECONDS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0

    def spent(self, seconds: float) -> None:
        (self.path / _SECONDS).write_text(f"{seconds:.1f}", encoding="utf-8")

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self) -> Run | None:
        try:
            data = json.loads((self.path / _RUN).read_text(encoding="utf-8"))
            return Run(of={str(k): str(v) for k, v in data["of"].items()}, steps=int(data["steps"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def require_same(was: Run, now: Mapping[str, str], steps: int | None) -> None:
    """Raises UsageError that names what changed since the run was interrupted."""
    changed = [name for name, value in now.items() if was.of.get(name) != value]
    if steps is not None and steps != was.steps:
        changed.append(f"number of steps ({was.steps}, now {steps})")
    if changed:
        raise UsageError(
            f"the interrupted training does not match: its {' and '.join(changed)} changed",
            hint="Use the original inputs, or start over with another --output and without --resume.",
        )
