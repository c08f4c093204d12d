"""The state of ONNX Runtime's CUDA provider on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgecompress.runtime.accelerators import BackendState, LibraryState, missing_libraries, missing_package

NAME = "onnxruntime-cuda"
PACKAGES = ("onnxruntime-gpu", "cuda-bindings")
_PROVIDER = "CUDAExecutionProvider"


def state(found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]) -> BackendState:
    """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
    lacks = [
        *missing_libraries(found, "driver", "cudart", "cudnn"),
        *missing_package("cuda-bindings", "cuda.bindings", has),
        *([] if _PROVIDER in providers else [f"onnxruntime-gpu with {_PROVIDER}"]),
    ]
    return BackendState(
        name=NAME,
        builds=True,
        runs=not lacks,
        lacks=tuple(lacks),
        remark="not yet run on a GPU; ONNX Runtime's TensorRT provider is not used",
    )
