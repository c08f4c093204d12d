"""The GPU kernels for ``edgecompress kernels``. Imports nothing heavy."""

from __future__ import annotations

from edgecompress_kernels.gpu.chips import CHIPS, HIDDEN_SIZES

RUN_ON = {(9, 0): "an H200"}
"""Capability -> the GPU on which its kernels were tested against float64 and timed."""


def verified(capability: tuple[int, int] | None = None) -> str:
    """Describe how the kernels were tested: those of one chip, or all."""
    elsewhere = "compiled ahead of time, and tested in Triton's interpreter"
    if capability is None:
        run = ", ".join(f"run on {device} ({major}.{minor})" for (major, minor), device in RUN_ON.items())
        return f"{run}; for other chips {elsewhere}, not yet run on a GPU"
    if capability in RUN_ON:
        return f"run on {RUN_ON[capability]}"
    return f"not yet run on a GPU of this capability; {elsewhere}"


_HEADS = "float16 or bfloat16, head size 64, 80, 96, 128 or 256, any group"
ROWS = (
    {
        "kernel": "gpu-prefill",
        "computes": "prefill attention",
        "takes": f"{_HEADS}; packed texts of any lengths; causal or not, windows, soft caps",
    },
    {
        "kernel": "gpu-prefill-hopper",
        "computes": "prefill attention, on 9.0 only",
        "takes": "float16 or bfloat16, head size 64, 80, 96 or 128, any group; causal or not",
    },
    {
        "kernel": "gpu-decode",
        "computes": "decode attention over a KV cache",
        "takes": f"{_HEADS}; a KV cache of the same type, int8 or (8.9 and later) fp8; split keys",
    },
    {
        "kernel": "gpu-add-norm",
        "computes": "residual addition and RMSNorm or LayerNorm",
        "takes": f"float16 or bfloat16, rows of up to {HIDDEN_SIZES[-1]}",
    },
)


def capabilities(kernel: str | None = None) -> list[str]:
    """Capabilities that a kernel, or any kernel, is compiled for."""
    return [chip.name for chip in CHIPS.values() if chip.hopper or kernel != "gpu-prefill-hopper"]
