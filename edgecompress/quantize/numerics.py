"""The arithmetic of quantization, in NumPy, shared by all schemes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecompress.types.arrays import FloatArray

_HALF = np.finfo(np.float16)


def per_column_int8(
    weight: FloatArray, bits: int = 8, *, half_scales: bool = False
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Symmetric int8 with one scale a column.

    weight [K, N] -> (int8 [K, N], float32 [N]). ``bits=7`` keeps the values within +-63, so that sums of two u8 x s8
    products fit in the 16 bits that x86 without VNNI gives them. ``half_scales``: as :func:`half_scale` has them.
    """
    limit = 2 ** (bits - 1) - 1
    scale = (np.abs(weight).max(axis=0) / limit).astype(np.float32)
    scale[scale == 0] = 1.0
    if half_scales:
        scale = half_scale(scale)
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def half_scale(scale: FloatArray) -> FloatArray:
    """Scales that float16 holds with all its digits, for targets that multiply by them in float16.

    To be taken before anything is rounded by them. What is smaller than float16's normal numbers becomes the smallest.
    """
    kept: FloatArray = np.clip(scale, _HALF.smallest_normal, _HALF.max).astype(np.float16).astype(np.float32)
    return kept


def per_row_int8(table: FloatArray, *, half_scales: bool = False) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """table [V, H] -> (int8 [V, H], float32 [V, 1])"""
    quantized, scale = per_column_int8(np.ascontiguousarray(table.T), half_scales=half_scales)
    return np.ascontiguousarray(quantized.T), scale[:, None]


def range_to_uint8(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point so that uint8 covers [low, high] and zero exactly, as DynamicQuantizeLinear has it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def range_to_int8(low: float, high: float) -> np.float32:
    """Scale so that int8, with 0 for zero, covers [low, high]; one that float16 holds."""
    reach = max(-low, high, 0.0) or 127.0
    return np.float32(half_scale(np.array(reach / 127, dtype=np.float32)))


def fake_quantize_uint8(x: FloatArray, scale: np.float32, zero_point: np.uint8) -> FloatArray:
    quantized = np.clip(np.rint(x / scale) + np.float32(zero_point), 0, 255)
    back: FloatArray = ((quantized - np.float32(zero_point)) * scale).astype(np.float32)
    return back
