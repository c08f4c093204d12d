"""ONNX Runtime's CUDA provider: what it needs is looked for first, and where its nodes went is read afterwards.

onnxruntime goes on without the provider where one of its libraries is missing, and puts single nodes on the CPU by
itself. Small arithmetic on shapes belongs there; anything else there is refused. Not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from edgecompress.errors import HostError
from edgecompress.runtime.accelerators import find_libraries

CUDA_PROVIDER = "CUDAExecutionProvider"
RECORD_PLACES = ("session.record_ep_graph_assignment_info", "1")
_NEEDS = ("driver", "cudart", "cudnn")
# What works out shapes and places of a few integers; onnxruntime keeps that on the CPU on purpose.
_OF_SHAPES = frozenset(
    {
        "Shape", "Size", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Add", "Sub", "Mul",
        "Div", "Mod", "Min", "Max", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or",
        "Where", "Range", "Expand", "ConstantOfShape", "ReduceSum", "ReduceMax", "ReduceProd", "Identity", "Constant",
    }
)  # fmt: skip


def cuda_provider(device: int) -> tuple[str, dict[str, str]]:
    """The provider as a session takes it. Raises HostError naming a library that is missing."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls(directory="")  # from NVIDIA's own packages, where they are installed
    found = find_libraries()
    missing = [found[key] for key in _NEEDS if not found[key].version]
    if missing:
        library = missing[0]
        raise HostError(
            f"the CUDA provider needs {library.title}, and there is {library.remark} on this machine",
            hint="`edgecompress doctor` shows what is here; pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA "
            "and cuDNN, the driver comes from NVIDIA.",
        )
    return CUDA_PROVIDER, {"device_id": str(device)}


def require_on_gpu(session: Any) -> None:
    """Raises HostError if anything but arithmetic on shapes was put on the CPU. The session recorded its places."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        raise HostError(
            f"onnxruntime {ort.__version__} does not tell whether it runs on the GPU",
            hint="Install a later onnxruntime-gpu: 1.32 does.",
        )
    strays = sorted(
        {
            node.op_type
            for part in ask()
            if part.ep_name != CUDA_PROVIDER
            for node in part.get_nodes()
            if node.op_type not in _OF_SHAPES
        }
    )
    if strays:
        raise HostError(
            f"onnxruntime {ort.__version__} runs {', '.join(strays)} of this bundle on the CPU, not on the GPU",
            hint="Install a later onnxruntime-gpu, or export for --backend tensorrt.",
        )
