"""The state of TensorRT for RTX on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgecompress.runtime.accelerators import BackendState, LibraryState, missing_libraries, missing_package

NAME = "tensorrt-rtx"
PACKAGES = ("tensorrt-rtx", "cuda-bindings")


def state(found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]) -> BackendState:
    """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
    build_lacks = missing_package("tensorrt-rtx", "tensorrt_rtx", has)
    lacks = [
        *build_lacks,
        *missing_package("cuda-bindings", "cuda.bindings", has),
        *missing_libraries(found, "driver"),
    ]
    return BackendState(
        name=NAME,
        builds=not build_lacks,
        runs=not lacks,
        lacks=tuple(lacks),
        remark="engines are built without a GPU; not yet run on a GPU",
    )
