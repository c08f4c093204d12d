"""A student's captured graph, kept for a run: torch.export takes seconds for the smallest, and exports share one."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Protocol

import pytest

from edgecompress.kinds.decoder import export as decoder
from edgecompress.kinds.encoder import export as encoder
from edgecompress.kinds.vision import export as vision
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student

_EXPORTS = (encoder, vision, decoder)

Once = Callable[[str, Callable[[Path], object]], Path]
"""A folder of this name, made by the first of a run's workers that asks for it."""


class Capture(Protocol):
    def __call__(self, student: Student, out_dir: Path, *, opset: int) -> Graph: ...


def _shared(capture: Capture, once: Once) -> Capture:
    """The contents of what an export reads decide, wherever they lie."""

    @wraps(capture)
    def captured(student: Student, out_dir: Path, *, opset: int) -> Graph:
        said = repr(student).replace(repr(student.source), "").replace(str(student.path), "")
        name = f"capture-{hashlib.sha256(f'{said} {opset}'.encode()).hexdigest()}"

        def make(folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            capture(student, folder, opset=opset)

        shutil.copytree(once(name, make), out_dir, dirs_exist_ok=True)
        return Graph(path=out_dir / "captured.onnx", stage="captured")

    return captured


def share_captures(patch: pytest.MonkeyPatch, once: Once) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    for module in _EXPORTS:
        patch.setattr(module, "capture", _shared(module.capture, once))
    # torch reads its table of operators anew for each export, a second each time.
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(lru_cache(ONNXRegistry.from_torchlib)))


def capture_anew(patch: pytest.MonkeyPatch) -> None:
    for module in _EXPORTS:
        patch.setattr(module, "capture", inspect.unwrap(module.capture))
