"""The arithmetic of quantization, in NumPy, shared by all schemes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


def per_column_int8(weight: Float, bits: int = 8) -> tuple[npt.NDArray[np.int8], Float]:
    """Symmetric int8 with one scale a column.

    weight [K, N] -> (int8 [K, N], float32 [N]). ``bits=7`` keeps the values within +-63, so that sums of two u8 x s8
    products fit in the 16 bits that x86 without VNNI gives them.
    """
    limit = 2 ** (bits - 1) - 1
    scale = (np.abs(weight).max(axis=0) / limit).astype(np.float32)
    scale[scale == 0] = 1.0
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def per_row_int8(table: Float) -> tuple[npt.NDArray[np.int8], Float]:
    """table [V, H] -> (int8 [V, H], float32 [V, 1])"""
    quantized, scale = per_column_int8(np.ascontiguousarray(table.T))
    return np.ascontiguousarray(quantized.T), scale[:, None]


def range_to_uint8(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point so that uint8 covers [low, high] and zero exactly, as DynamicQuantizeLinear has it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def fake_quantize_uint8(x: Float, scale: np.float32, zero_point: np.uint8) -> Float:
    quantized = np.clip(np.rint(x / scale) + np.float32(zero_point), 0, 255)
    back: Float = ((quantized - np.float32(zero_point)) * scale).astype(np.float32)
    return back


def blockwise(weight: Float, bits: int, block_size: int) -> tuple[npt.NDArray[np.uint8], Float]:
    """Symmetric weight-only blocks in the layout of com.microsoft::MatMulNBits.

    weight [K, N] -> (uint8 [N, ceil(K / block), block * bits / 8], float32 [N, ceil(K / block)]). The zero point is the
    middle, 2 ** (bits - 1); two 4-bit values share a byte, the first in the low half.
    """
    rows = np.ascontiguousarray(weight.T)
    n, k = rows.shape
    blocks = -(-k // block_size)
    padded = np.zeros((n, blocks * block_size), dtype=np.float32)
    padded[:, :k] = rows
    padded = padded.reshape(n, blocks, block_size)
    middle = 2 ** (bits - 1)
    # The value of largest magnitude maps onto -middle, the end that has one step more.
    index = np.abs(padded).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(padded, index, axis=2)
    scale = (extreme / -middle).astype(np.float32)
    scale[scale == 0] = 1.0
    quantized = (np.clip(np.rint(padded / scale), -middle, middle - 1) + middle).astype(np.uint8)
    if bits == 4:
        quantized = quantized[:, :, 0::2] | (quantized[:, :, 1::2] << 4)
    return quantized, scale[:, :, 0]
