"""Backends. A backend is a package with the modules that :mod:`edgecompress.backends.base` describes."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.backends.base import Backend
from edgecompress.registry import look_up, plug_ins
from edgecompress.types.target import ACCELERATORS

GROUP = "edgecompress.backends"
"""Entry-point group for backends of other packages: name of the backend = its package."""

BACKENDS = {
    "onnxruntime-cpu": "edgecompress.backends.onnxruntime_cpu",
    "onnxruntime-cuda": "edgecompress.backends.onnxruntime_cuda",
    "tensorrt-rtx": "edgecompress.backends.tensorrt_rtx",
    "tensorrt": "edgecompress.backends.tensorrt",
}
"""Ours."""


def backends() -> Mapping[str, Backend]:
    """All installed backends, the built-in ones first."""
    return {name: Backend(found) for name, found in plug_ins(GROUP, tuple(BACKENDS.items())).items()}


def backend_for(name: str, accelerator: str) -> Backend:
    """Return the backend for a name in a target's file: the backend ``name``, or ``name-accelerator``.

    Raises UsageError if there is none.
    """
    return find_backend(name if name in backends() else f"{name}-{accelerator}")


def target_names() -> tuple[str, ...]:
    """The backend names that a target's file can use."""
    return tuple(dict.fromkeys(_plain(name) for name in backends()))


def names_on(accelerator: str) -> tuple[str, ...]:
    """The names, in a target's file, of backends that have a variant for the accelerator."""
    return tuple(_plain(name) for name in backends() if name.endswith(f"-{accelerator}"))


def _plain(name: str) -> str:
    for accelerator in ACCELERATORS:
        name = name.removesuffix(f"-{accelerator}")
    return name


def find_backend(name: str) -> Backend:
    """Raises UsageError if no backend has that name."""
    return Backend(look_up("backend", name, GROUP, BACKENDS))
