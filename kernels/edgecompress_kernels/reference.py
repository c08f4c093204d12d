"""Reference implementations of all kernels in plain NumPy float64, for tests."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def quantized_rows(x: Array, block: int) -> Array:
    """x [M, K] quantized to int8 per block (255 steps of the block's largest value) and dequantized, float64."""
    parts = x.astype(np.float64).reshape(len(x), x.shape[1] // block, block)
    step = (np.abs(parts).max(-1, keepdims=True) / 127).astype(np.float32)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    whole = np.rint(x.astype(np.float32).reshape(parts.shape) * inverse)
    return np.asarray((whole.astype(np.float64) * step).reshape(x.shape))


def block_weights(packed: Array, scales: Array, zero_points: Array | None, bits: int) -> Array:
    """uint8 [N, blocks, block * bits / 8] (low nibble first), scales and zero points [N, blocks] -> float64 [N, K]."""
    whole = packed
    if bits == 4:
        whole = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    zero = np.float64(1 << (bits - 1)) if zero_points is None else zero_points.astype(np.float64)[..., None]
    return np.asarray(((whole - zero) * scales.astype(np.float64)[..., None]).reshape(len(packed), -1))


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """x [..., D] with its first 2 R values rotated (non-interleaved); cos and sin [..., R]."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def attention(q: Array, keys: Array, values: Array, past: int, scale: float, window: int = -1) -> Array:
    """q [H, T, D] after ``past`` tokens; keys and values [Hk, S, D], S >= past + T -> [H, T, D] in float64."""
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


def seen_attention(
    q: Array, keys: Array, values: Array, scale: float, *, causal: bool, window: int = 0, soft_cap: float = 0.0
) -> Array:
    """q [H, T, D], the last at the last key; keys and values [Hk, S, D] -> [H, T, D]; zero for rows without keys."""
    heads, tokens, _ = q.shape
    group, count = heads // len(keys), keys.shape[1]
    distance = (np.arange(tokens) + count - tokens)[:, None] - np.arange(count)
    seen = np.ones(distance.shape, bool)
    if causal:
        seen &= distance >= 0
    if window > 0:
        seen &= np.abs(distance) < window
    out = np.zeros(q.shape)
    for h in range(heads):
        scores = q[h].astype(np.float64) @ keys[h // group].astype(np.float64).T * scale
        if soft_cap > 0:
            scores = soft_cap * np.tanh(scores / soft_cap)
        for t in np.flatnonzero(seen.any(-1)):
            weights = np.exp(scores[t, seen[t]] - scores[t, seen[t]].max())
            out[h, t] = weights @ values[h // group][seen[t]].astype(np.float64) / weights.sum()
    return out


def rms_norm(x: Array, gamma: Array, epsilon: float) -> Array:
    x = x.astype(np.float64)
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma)


def gated(x: Array, alpha: float) -> Array:
    """x [M, 2 N] -> [M, N] in float64: the first half, times its sigmoid at ``alpha``, times the second half."""
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    return np.asarray(a / (1 + np.exp(-alpha * a)) * b)


def rounded_cache(x: Array, scales: Array) -> Array:
    """x [Hk, T, D] as stored in an int8 cache, with per-channel scales [Hk, D]; in float32, for identical rounding."""
    return np.asarray(np.clip(np.rint(x.astype(np.float32) / scales[:, None]), -128, 127).astype(np.int8))


def rounded_scores(q: Array, scales: Array, keys: Array) -> Array:
    """q [D], rotated and scaled, times the keys' scales, in 16 bits, times int8 keys [S, D] -> exact float32 [S]."""
    scaled = q.astype(np.float32) * scales
    step = np.abs(scaled).max() / np.float32(32767)
    inverse = np.float32(1) / step if step >= np.finfo(np.float32).tiny else np.float32(0)
    shorts = np.rint(scaled * inverse).astype(np.int64)
    return np.asarray((keys.astype(np.int64) @ shorts).astype(np.float32) * step)


def block_softmax(scores: Array, first: int, block: int) -> tuple[Array, Array]:
    """For keys starting at ``first``: exp(score - block's largest) [S], and the block's unit [S], float64.

    Weights are their product. In 15 bits they are rint(exp * 32767) * unit.
    """
    starts = np.maximum(np.arange(first // block, (first + len(scores) - 1) // block + 1) * block - first, 0)
    largest = np.repeat(np.maximum.reduceat(scores, starts), np.diff([*starts, len(scores)]))
    return np.exp((scores - largest).astype(np.float64)), np.exp(largest.astype(np.float64) - scores.max())


def rounded_rows(x: Array) -> Array:
    """x [M, K] quantized to 256 steps between each row's minimum and maximum and dequantized, float64."""
    x = x.astype(np.float64)
    low = x.min(-1, keepdims=True)
    step = (x.max(-1, keepdims=True) - low) / 255
    return np.asarray(low + np.rint((x - low) / np.where(step > 0, step, 1)) * step)


def rounded_heads(x: Array) -> Array:
    """x [..., D] quantized to 255 steps of its largest value and dequantized, float64."""
    step = np.abs(x).max(-1, keepdims=True) / 127
    return np.asarray(np.rint(x / np.where(step > 0, step, 1)) * step)


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative probability at x, float64."""
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta)


def linear(x: Array, layer: dict[str, Array], rounded: bool) -> Array:
    """x times layer["smooth"], quantized if ``rounded``, times int8 layer["weights"] [K, N] and scales, plus bias."""
    x = x * layer["smooth"]
    x = rounded_rows(x) if rounded else x
    return np.asarray(x @ layer["weights"].astype(np.float64) * layer["scales"] + layer["bias"])


def packed_attention(qkv: Array, heads: int, starts: Array, scale: float, rounded: bool) -> Array:
    """qkv [N, 3 H] -> [N, H]; each token attends to its own sequence; ``starts``: the sequences' first rows."""
    q, k, v = (part.reshape(len(qkv), heads, -1) for part in np.split(qkv, 3, axis=-1))
    if rounded:
        q, k, v = rounded_heads(q), rounded_heads(k), rounded_heads(v)
    out = np.zeros(q.shape)
    for first, end in itertools.pairwise(starts):
        if first == end:
            continue
        scores = np.einsum("qhd,khd->hqk", q[first:end], k[first:end]) * scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        if rounded:  # to 255 steps, after multiplying by the values' scales
            of_values = np.abs(v[first:end]).max(-1).T[:, None]
            step = of_values.max(-1, keepdims=True) / 255
            weights = np.rint(weights * of_values / step) * step / of_values
        out[first:end] = np.einsum("hqk,khd->qhd", weights / total, v[first:end])
    return out.reshape(len(qkv), -1)


def encoder_layer(
    x: Array, layer: dict[str, Any], heads: int, starts: Array, scale: float, epsilon: float, rounded: bool
) -> Array:
    """One layer over packed rows x [N, H]; ``rounded``: with 8-bit activations, as in the kernel."""
    x = x.astype(np.float64)
    out = packed_attention(linear(x, layer["qkv"], rounded), heads, starts, scale, rounded)
    (gamma1, beta1), (gamma2, beta2) = layer["norm1"], layer["norm2"]
    middle = layer_norm(linear(out, layer["out"], rounded) + x, gamma1, beta1, epsilon)
    down = linear(gelu(linear(middle, layer["up"], rounded)), layer["down"], rounded)
    return layer_norm(down + middle, gamma2, beta2, epsilon)
