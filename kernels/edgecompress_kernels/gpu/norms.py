"""The norms on torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from edgecompress_kernels.gpu.attention import KernelInputError, check_device
from edgecompress_kernels.gpu.chips import FLOATS, HIDDEN_SIZES, norm_rows
from edgecompress_kernels.gpu.jit.norms import add_norm_kernel

if TYPE_CHECKING:
    from torch import Tensor


def add_rms_norm(x: Tensor, residual: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return (x + residual, its RMSNorm times gamma), each [..., columns] in x's type; the sum is rounded once.

    Raises KernelInputError for unsupported shapes and types.
    """
    return _add_norm(x, residual, gamma, None, epsilon)


def add_layer_norm(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return (x + residual, its LayerNorm times gamma plus beta), as ``add_rms_norm``."""
    return _add_norm(x, residual, gamma, beta, epsilon)


def _add_norm(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
    columns = x.shape[-1]
    vectors = [gamma] if beta is None else [gamma, beta]
    if str(x.dtype).removeprefix("torch.") not in FLOATS or any(t.dtype != x.dtype for t in (residual, *vectors)):
        raise KernelInputError(f"x, residual, gamma and beta must be of one type, one of {', '.join(FLOATS)}")
    if x.shape != residual.shape or any(t.shape != (columns,) or not t.is_contiguous() for t in vectors):
        raise KernelInputError("residual must have x's shape, and gamma and beta [columns], contiguous")
    if not 0 < columns <= HIDDEN_SIZES[-1]:
        raise KernelInputError(f"rows have {columns} columns; the kernel supports 1 to {HIDDEN_SIZES[-1]}")
    check_device(x)
    x_rows, residual_rows = x.reshape(-1, columns), residual.reshape(-1, columns)
    if x_rows.stride(-1) != 1 or residual_rows.stride(-1) != 1:
        raise KernelInputError("the last axis of x or residual is not contiguous: call .contiguous()")
    summed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty_like(summed)
    block = triton.next_power_of_2(columns)
    rows, warps = norm_rows(block)
    if len(x_rows):
        add_norm_kernel[(triton.cdiv(len(x_rows), rows),)](
            x_rows, residual_rows, gamma, gamma if beta is None else beta, summed, out,
            x_rows.stride(0), residual_rows.stride(0), len(x_rows), columns, float(epsilon),
            ROWS=rows, BLOCK=block, LAYER=beta is not None, num_warps=warps,
        )  # fmt: skip
    return summed, out
