"""Backends. One is one folder with the modules that :mod:`edgecompress.backends.base` describes."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.backends.base import Backend
from edgecompress.registry import look_up, plug_ins

GROUP = "edgecompress.backends"
"""Entry points of other packages: name of the backend = its package."""

BACKENDS = {
    "onnxruntime-cpu": "edgecompress.backends.onnxruntime_cpu",
    "onnxruntime-cuda": "edgecompress.backends.onnxruntime_cuda",
    "tensorrt-rtx": "edgecompress.backends.tensorrt_rtx",
    "tensorrt": "edgecompress.backends.tensorrt",
}
"""Ours."""


def backends() -> Mapping[str, Backend]:
    """Every backend that is installed, ours first."""
    return {name: Backend(found) for name, found in plug_ins(GROUP, tuple(BACKENDS.items())).items()}


def find_backend(name: str) -> Backend:
    """Raises UsageError if there is none of that name."""
    return Backend(look_up("backend", name, plug_ins(GROUP, tuple(BACKENDS.items()))))
