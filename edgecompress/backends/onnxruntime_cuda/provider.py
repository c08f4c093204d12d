"""Checks ONNX Runtime's CUDA provider: its libraries before opening a session, the placement of nodes afterwards.

If a library is missing, onnxruntime silently continues without the provider, and it can place single nodes on the CPU.
Only small arithmetic on shapes is accepted there. Not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from edgecompress.errors import HostError
from edgecompress.runtime.accelerators import find_libraries

CUDA_PROVIDER = "CUDAExecutionProvider"
RECORD_PLACES = ("session.record_ep_graph_assignment_info", "1")
_NEEDS = ("driver", "cudart", "cudnn")
# Ops on shapes and a few integers, which onnxruntime places on the CPU on purpose.
_OF_SHAPES = frozenset(
    {
        "Shape", "Size", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Add", "Sub", "Mul",
        "Div", "Mod", "Min", "Max", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or",
        "Where", "Range", "Expand", "ConstantOfShape", "ReduceSum", "ReduceMax", "ReduceProd", "Identity", "Constant",
    }
)  # fmt: skip


def cuda_provider(device: int) -> tuple[str, dict[str, str]]:
    """Return the provider with its options. Raises HostError naming a missing library."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls(directory="")  # from NVIDIA's packages, if installed
    found = find_libraries()
    missing = [found[key] for key in _NEEDS if not found[key].version]
    if missing:
        library = missing[0]
        raise HostError(
            f"the CUDA provider needs {library.title}, but there is {library.remark} on this machine",
            hint="For CUDA and cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'. Install the driver from NVIDIA. "
            "`edgecompress doctor` shows what is installed.",
        )
    return CUDA_PROVIDER, {"device_id": str(device)}


def require_on_gpu(session: Any) -> None:
    """Raises HostError if the session placed anything but arithmetic on shapes on the CPU."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        raise HostError(
            f"onnxruntime {ort.__version__} does not report whether it runs on the GPU",
            hint="Install onnxruntime-gpu 1.32 or later.",
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
            hint="Install a later onnxruntime-gpu, or export with --backend tensorrt.",
        )
