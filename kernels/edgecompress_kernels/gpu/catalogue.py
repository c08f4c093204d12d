"""The GPU kernels as ``edgecompress kernels`` lists them; nothing is imported for it."""

from __future__ import annotations

from edgecompress_kernels.gpu.chips import CHIPS, HIDDEN_SIZES

RUN_ON = {(9, 0): "an H200"}
"""Capabilities whose kernels were run, against float64 and for their speed, and on what."""


def verified(capability: tuple[int, int] | None = None) -> str:
    """How kernels were tested, and how not: those of one chip, or of all."""
    elsewhere = "compiled ahead of time, and tested in Triton's interpreter"
    if capability is None:
        run = ", ".join(f"run on {device} ({major}.{minor})" for (major, minor), device in RUN_ON.items())
        return f"{run}; for other chips {elsewhere}, not yet run on a GPU of theirs"
    if capability in RUN_ON:
        return f"run on {RUN_ON[capability]}"
    return f"not yet run on a GPU of this capability; {elsewhere}"


_HEADS = "float16 or bfloat16, heads of 64, 80, 96, 128 or 256, any group"
ROWS = (
    {
        "kernel": "gpu-prefill",
        "computes": "attention of whole texts",
        "takes": f"{_HEADS}; texts of any lengths, packed; causal or not, windows, soft caps",
    },
    {
        "kernel": "gpu-prefill-hopper",
        "computes": "the same, on 9.0 alone",
        "takes": "float16 or bfloat16, heads of 64, 80, 96 or 128, any group; causal or not",
    },
    {
        "kernel": "gpu-decode",
        "computes": "attention of new tokens over a cache",
        "takes": f"{_HEADS}; a cache of the same type, int8 or (8.9 and later) fp8, keys in splits that are joined",
    },
    {
        "kernel": "gpu-add-norm",
        "computes": "a residual and RMSNorm or LayerNorm",
        "takes": f"float16 or bfloat16, rows of up to {HIDDEN_SIZES[-1]}",
    },
)


def capabilities(kernel: str | None = None) -> list[str]:
    """Those that a kernel is compiled for, or any."""
    return [chip.name for chip in CHIPS.values() if chip.hopper or kernel != "gpu-prefill-hopper"]
