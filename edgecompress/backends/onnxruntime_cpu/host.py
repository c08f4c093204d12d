"""The state of ONNX Runtime for CPUs on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgecompress.runtime.accelerators import BackendState, LibraryState

NAME = "onnxruntime-cpu"
PACKAGES = ("onnxruntime",)


def state(found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]) -> BackendState:
    """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
    runs = "CPUExecutionProvider" in providers
    return BackendState(name=NAME, builds=True, runs=runs)
