"""The state of TensorRT on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgecompress.runtime.accelerators import BackendState, LibraryState, missing_libraries, missing_package

NAME = "tensorrt"
PACKAGES = ("tensorrt", "cuda-bindings")


def state(found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]) -> BackendState:
    """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
    versions = missing_libraries(found, "nvinfer10", "nvinfer11")
    build_lacks = [
        *missing_libraries(found, "driver"),
        *([" or ".join(versions)] if len(versions) == 2 else []),  # either is enough
        *missing_package("tensorrt", "tensorrt", has),
    ]
    lacks = [*build_lacks, *missing_package("cuda-bindings", "cuda.bindings", has)]
    return BackendState(
        name=NAME,
        builds=not build_lacks,
        runs=not lacks,
        lacks=tuple(lacks),
        remark="engines are built on the device; not yet run on a GPU",
    )
