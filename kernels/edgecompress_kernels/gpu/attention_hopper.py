"""Prefill attention on Hopper's asynchronous units; ``attention.prefill`` uses it for the inputs that it supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgecompress_kernels.gpu.chips import (
    HOPPER,
    HOPPER_BLOCK_N,
    HOPPER_REGISTERS,
    HOPPER_ROWS,
    HOPPER_STAGES,
    hopper_sizes,
)

if TYPE_CHECKING:
    from torch import Tensor

_ELEMENTS = 8  # of 16 bytes, to which a map's address and strides must be aligned


def takes(q: Tensor, k: Tensor, v: Tensor, width: int) -> bool:
    """Whether the kernel supports this: Hopper, 16-bit floats, width 64 or 128, tensors for the copy engine."""
    if torch.cuda.get_device_capability(q.device) != HOPPER or q.dtype == torch.float32:
        return False
    mapped = all(
        x.data_ptr() % 16 == 0 and len(x) > 0 and all(stride % _ELEMENTS == 0 for stride in x.stride()[:2])
        for x in (q, k, v)
    )
    return mapped and width in HOPPER_STAGES


def prefill(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, q_starts: Tensor, k_starts: Tensor, *,
    longest: int, width: int, scale: float, causal: bool,
) -> None:  # fmt: skip
    """``attention.prefill`` into ``out``, for inputs that were checked there and that ``takes`` accepts."""
    from triton.experimental.gluon import language
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from edgecompress_kernels.gpu.jit.prefill_hopper import prefill_hopper_kernel

    layout = language.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)

    def mapped(x: Tensor, rows: int) -> TensorDescriptor:
        """By head: [heads, tokens, D]."""
        shape, strides = (x.shape[1], x.shape[0], x.shape[2]), (x.stride(1), x.stride(0), 1)
        return TensorDescriptor(x, list(shape), list(strides), [1, rows, width], layout)

    device = torch.cuda.get_device_properties(q.device)
    sizes = hopper_sizes(
        longest=longest, heads=q.shape[1], kv_heads=k.shape[1], texts=len(q_starts) - 1, keys=len(k), head=q.shape[2],
        processors=device.multi_processor_count, cache_bytes=device.L2_cache_size,
    )  # fmt: skip
    prefill_hopper_kernel[(sizes.pop("programs"),)](
        mapped(q, HOPPER_ROWS), mapped(k, HOPPER_BLOCK_N), mapped(v, HOPPER_BLOCK_N), out, q_starts, k_starts,
        out.stride(0), out.stride(1), **sizes, scale=scale,
        HEAD=q.shape[2], WIDTH=width, BLOCK_N=HOPPER_BLOCK_N, STAGES=HOPPER_STAGES[width], CAUSAL=causal,
        num_warps=4, maxnreg=HOPPER_REGISTERS,
    )  # fmt: skip
