"""What each kernel computes, in NumPy float64 and as plainly as it can be said: the only oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def quantized_rows(x: Array, block: int) -> Array:
    """x [M, K] as its int8 rounding a block says it: the nearest of 255 steps of the block's largest value, float64."""
    parts = x.astype(np.float64).reshape(len(x), x.shape[1] // block, block)
    step = (np.abs(parts).max(-1, keepdims=True) / 127).astype(np.float32)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    whole = np.rint(x.astype(np.float32).reshape(parts.shape) * inverse)
    return np.asarray((whole.astype(np.float64) * step).reshape(x.shape))


def block_weights(packed: Array, scales: Array, zero_points: Array | None, bits: int) -> Array:
    """uint8 [N, blocks, block * bits / 8] (low half first), scales and zero points [N, blocks] -> float64 [N, K]."""
    whole = packed
    if bits == 4:
        whole = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    zero = np.float64(1 << (bits - 1)) if zero_points is None else zero_points.astype(np.float64)[..., None]
    return np.asarray(((whole - zero) * scales.astype(np.float64)[..., None]).reshape(len(packed), -1))


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """x [..., D], its first 2 R values turned: halves against each other; cos and sin [..., R]."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def attention(q: Array, keys: Array, values: Array, past: int, scale: float, window: int = -1) -> Array:
    """q [H, T, D] behind ``past`` tokens; keys and values [Hk, S, D], S >= past + T -> [H, T, D] in float64."""
    heads, tokens, _ = q.shape
    group = heads // len(keys)
    out = np.zeros(q.shape)
    for h in range(heads):
        for t in range(tokens):
            last = past + t
            first = max(0, last - window + 1) if window > 0 else 0
            k, v = (x[h // group, first : last + 1].astype(np.float64) for x in (keys, values))
            scores = k @ q[h, t].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[h, t] = weights @ v / weights.sum()
    return out
