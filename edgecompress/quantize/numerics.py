"""The arithmetic of quantization, in NumPy, shared by all schemes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecompress.types.arrays import FloatArray

_HALF = np.finfo(np.float16)


def per_column_int8(
    weight: FloatArray, bits: int = 8, *, half_scales: bool = False
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Symmetric int8 with one scale per column.

    weight [K, N] -> (int8 [K, N], float32 [N]). ``bits=7`` limits values to ±63, so that sums of two u8 x s8
    products fit into the 16 bits of x86 without VNNI. ``half_scales``: apply :func:`half_scale`.
    """
    limit = 2 ** (bits - 1) - 1
    scale = (np.abs(weight).max(axis=0) / limit).astype(np.float32)
    scale[scale == 0] = 1.0
    if half_scales:
        scale = half_scale(scale)
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def half_scale(scale: FloatArray) -> FloatArray:
    """Round scales to float16's normal range, for targets that multiply by them in float16.

    Call this before rounding values with them. Smaller scales become float16's smallest normal number.
    """
    kept: FloatArray = np.clip(scale, _HALF.smallest_normal, _HALF.max).astype(np.float16).astype(np.float32)
    return kept


def per_row_int8(table: FloatArray, *, half_scales: bool = False) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """table [V, H] -> (int8 [V, H], float32 [V, 1])"""
    quantized, scale = per_column_int8(np.ascontiguousarray(table.T), half_scales=half_scales)
    return np.ascontiguousarray(quantized.T), scale[:, None]


def range_to_uint8(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point with which uint8 covers [low, high] and represents 0 exactly, as DynamicQuantizeLinear."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def range_to_int8(low: float, high: float) -> np.float32:
    """Scale with which int8, with zero point 0, covers [low, high]; float16 represents it exactly."""
    reach = max(-low, high, 0.0) or 127.0
    return np.float32(half_scale(np.array(reach / 127, dtype=np.float32)))


def fake_quantize_uint8(x: FloatArray, scale: np.float32, zero_point: np.uint8) -> FloatArray:
    quantized = np.clip(np.rint(x / scale) + np.float32(zero_point), 0, 255)
    back: FloatArray = ((quantized - np.float32(zero_point)) * scale).astype(np.float32)
    return back
