"""The GPU kernels as ``edgecompress kernels`` lists them; nothing is imported for it."""

from __future__ import annotations

from edgecompress_kernels.gpu.chips import CHIPS, HIDDEN_SIZES

VERIFIED = "not yet run on a GPU; compiled ahead of time, and tested in Triton's interpreter"
_HEADS = "float16 or bfloat16, heads of 64, 80, 96, 128 or 256, any group"
ROWS = (
    {
        "kernel": "gpu-prefill",
        "computes": "attention of whole texts",
        "takes": f"{_HEADS}; texts of any lengths, packed; causal or not, windows, soft caps",
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


def capabilities() -> list[str]:
    """Those that the kernels are compiled for."""
    return [chip.name for chip in CHIPS.values()]
