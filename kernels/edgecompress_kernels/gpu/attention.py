"""The attention kernels on torch tensors: checks the arguments, chooses tiles, and launches through Triton.

On a CPU they run only in Triton's interpreter: set TRITON_INTERPRET=1 before importing this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from edgecompress_kernels.gpu import attention_hopper
from edgecompress_kernels.gpu.chips import FLOAT32, FLOATS, INTERPRETED, Tile, nearest, splits_for, width_of
from edgecompress_kernels.gpu.jit.decode import decode_kernel
from edgecompress_kernels.gpu.jit.prefill import prefill_kernel
from edgecompress_kernels.gpu.variants import JOINED_ROWS, JOINED_VALUES, MOST_WINDOW

if TYPE_CHECKING:
    from torch import Tensor


_ROUNDED = (torch.int8, torch.float8_e4m3fn)


class KernelInputError(ValueError):
    """A tensor is not supported by a kernel; the message names it and what the kernel supports."""


def _check(right: bool, message: str) -> None:
    if not right:
        raise KernelInputError(message)


def check_device(tensor: Tensor) -> bool:
    """Whether the kernel runs on a GPU rather than in the interpreter.

    Raises KernelInputError for a CPU tensor without the interpreter.
    """
    _check(
        tensor.is_cuda or triton.knobs.runtime.interpret,
        f"the tensors are on '{tensor.device}': move them to a CUDA device, or set TRITON_INTERPRET=1 to test on a CPU",
    )
    return bool(tensor.is_cuda)


def _check_floats(name: str, tensor: Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    _check(dtype in FLOATS, f"{name} is {dtype}; the kernel takes {', '.join(FLOATS)}")


def _check_heads(q: Tensor, heads: int, kv_heads: int) -> None:
    head = q.shape[-1]
    _check(head % 16 == 0 and 16 <= head <= 256, f"the head size is {head}; it must be 16 to 256, in steps of 16")
    _check(kv_heads > 0 and heads % kv_heads == 0, f"{heads} query heads are not a multiple of {kv_heads} key heads")


def _check_numbers(scale: float, window: int, soft_cap: float) -> None:
    _check(scale > 0, f"scale is {scale}; it must be above 0")
    _check(0 <= window <= MOST_WINDOW, f"window is {window}; it must be 0 (none) or the number of visible keys")
    _check(soft_cap >= 0, f"soft_cap is {soft_cap}; it must be 0 (none) or above")


def _check_dense(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        _check(tensor.stride(-1) == 1, f"{name}'s last axis is not contiguous: call .contiguous()")


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    *,
    longest: int,
    scale: float,
    causal: bool,
    window: int = 0,
    soft_cap: float = 0.0,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Attention over packed texts: q [tokens, Hq, D], k and v [keys, Hk, D], of one float type -> like q.

    Text b has queries q_starts[b] to q_starts[b + 1] and keys k_starts[b] to k_starts[b + 1] (int32 [B + 1]); either
    can be empty. ``longest``: at least the queries of the longest text. A text's last query is at its last key's
    position. ``causal``: queries do not see later keys. ``window``: they see only keys at a smaller distance, before
    them or, if not causal, on both sides. ``soft_cap``: scores become cap * tanh(score / cap). A query without visible
    keys gives zeros.

    Raises KernelInputError for unsupported shapes, types and strides.
    """
    _check(
        q.ndim == 3 and k.ndim == 3 and v.shape == k.shape,
        "q, k and v must be [tokens, heads, D], with k and v the same shape",
    )
    _check_floats("q", q)
    _check(
        q.dtype == k.dtype == v.dtype,
        f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: they must have the same type",
    )
    _check(
        q.shape[-1] == k.shape[-1], f"the head size of q is {q.shape[-1]} and of k {k.shape[-1]}: they must be the same"
    )
    _check_heads(q, q.shape[1], k.shape[1])
    _check_numbers(scale, window, soft_cap)
    for name, starts in (("q_starts", q_starts), ("k_starts", k_starts)):
        _check(starts.dtype == torch.int32 and starts.ndim == 1, f"{name} must be int32 [B + 1]")
    _check(len(q_starts) == len(k_starts), f"q_starts has {len(q_starts) - 1} texts and k_starts {len(k_starts) - 1}")
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    _check(out.shape == q.shape and out.dtype == q.dtype, "out must have q's shape and type")
    _check_dense(q=q, k=k, v=v, out=out)
    on_gpu = check_device(q)
    batch, width = len(q_starts) - 1, width_of(q.shape[-1])
    if len(q) == 0:
        return out
    _check(longest > 0 and batch > 0, f"there are {len(q)} queries, but the longest of {batch} texts has {longest}")
    if on_gpu and tile is None and window == 0 and soft_cap == 0 and attention_hopper.takes(q, k, v, width):
        settings: dict[str, Any] = {"longest": longest, "width": width, "scale": float(scale), "causal": causal}
        attention_hopper.prefill(q, k, v, out, q_starts, k_starts, **settings)
        return out
    if tile is None and on_gpu:
        of_chip = nearest(torch.cuda.get_device_capability(q.device)).prefill[max(64, width)]
        tile = FLOAT32 if q.dtype == torch.float32 else of_chip
    tile = INTERPRETED if tile is None else tile
    prefill_kernel[(triton.cdiv(longest, tile.block_m), q.shape[1], batch)](
        q, k, v, out, q_starts, k_starts,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), out.stride(0), out.stride(1),
        q.shape[1] // k.shape[1], window, float(scale), float(soft_cap),
        HEAD=q.shape[-1], WIDTH=width, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        CAUSAL=causal, WINDOW=window > 0, SOFT_CAP=soft_cap > 0,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


def decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    longest: int,
    scale: float,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    splits: int | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Causal attention of a few new tokens over a cache: q [B, T, Hq, D], keys, values [B, Hk, capacity, D] -> like q.

    ``lengths`` int32 [B]: keys of each text, including its T new ones; ``longest``: at least their maximum. Keys and
    values have q's type, or int8 or float8 e4m3 with ``key_scales`` and ``value_scales`` float32 [Hk, D]: one scale per
    channel; for a scale per head, repeat it. A query without visible keys gives zeros.
    ``splits``: programs that share the keys; None chooses for the device, 1 on a CPU.

    Raises KernelInputError for unsupported shapes, types and strides.
    """
    _check(q.ndim == 4, "q must be [B, T, Hq, D]")
    _check(
        keys.ndim == 4 and keys.shape == values.shape, "keys and values must have the same shape [B, Hk, capacity, D]"
    )
    batch, tokens, heads, head = q.shape
    _check(keys.shape[0] == batch and keys.shape[-1] == head, "keys must have q's texts and head size")
    kv_heads, capacity = keys.shape[1], keys.shape[2]
    _check_floats("q", q)
    _check_heads(q, heads, kv_heads)
    _check_numbers(scale, window, soft_cap)
    _check(keys.dtype == values.dtype, f"keys are {keys.dtype} and values {values.dtype}: they must have the same type")
    rounded = keys.dtype in _ROUNDED
    _check(rounded or keys.dtype == q.dtype, f"the cache is {keys.dtype}: it must be {q.dtype}, int8 or float8_e4m3fn")
    given = {key_scales is not None, value_scales is not None}
    _check(
        given == {rounded}, "an int8 or float8 cache needs key_scales and value_scales; other caches must not have them"
    )
    for name, given_scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        dense = given_scales is None or given_scales.is_contiguous()
        right = given_scales is None or (given_scales.shape == (kv_heads, head) and given_scales.dtype == torch.float32)
        _check(right and dense, f"{name} must be float32 [Hk, D] and contiguous")
    _check(lengths.shape == (batch,) and lengths.dtype == torch.int32, "lengths must be int32 [B]")
    _check(longest <= capacity, f"the longest text has {longest} keys, but the cache has room for {capacity}")
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    _check(out.shape == q.shape and out.dtype == q.dtype, "out must have q's shape and type")
    _check_dense(q=q, keys=keys, values=values, out=out)
    on_gpu = check_device(q)
    if q.numel() == 0:
        return out
    width, rows = width_of(head), tokens * heads // kv_heads
    processors = 1
    if on_gpu:
        chip = nearest(torch.cuda.get_device_capability(q.device))
        _check(chip.fp8 or keys.dtype != torch.float8_e4m3fn, f"capability {chip.name} has no fp8: use an int8 cache")
        processors = torch.cuda.get_device_properties(q.device).multi_processor_count
        of_chip = FLOAT32 if q.dtype == torch.float32 else chip.decode[max(64, width)]
        tile = of_chip if tile is None else tile
    tile = INTERPRETED if tile is None else tile
    blocks = triton.cdiv(rows, tile.block_m)
    split_keys = triton.cdiv(triton.cdiv(max(1, longest), splits or 1), tile.block_n) * tile.block_n
    if splits is None and on_gpu:
        slots = processors * (2 if rounded else 1)  # an 8-bit cache needs more compute per byte read
        splits, split_keys = splits_for(longest, blocks * kv_heads * batch, slots, tile.block_n)
    splits = triton.cdiv(max(1, longest), split_keys)
    sums = (batch, kv_heads, splits, tile.groups, rows)
    partials, states = (torch.empty((*sums, size), device=q.device) for size in (head, 2))
    counters = _counters(q.device, batch * kv_heads * blocks) if splits > 1 else lengths  # unused
    of_keys, of_values = (key_scales, value_scales) if rounded else (states, states)  # unused too
    integer = keys.dtype == torch.int8 and q.dtype != torch.float32
    decode_kernel[(splits * blocks, kv_heads, batch)](
        q, keys, values, of_keys, of_values, lengths, out, partials, states, counters,
        *q.stride()[:3], *keys.stride()[:3], *values.stride()[:3], *out.stride()[:3],
        tokens, heads // kv_heads, splits, split_keys, window, float(scale), float(soft_cap),
        HEAD=head, WIDTH=width, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, GROUPS=tile.groups,
        SCALED=rounded, SOFT_CAP=soft_cap > 0, PACKED=integer and on_gpu, INTEGER=integer and width >= 32,
        JOINED_ROWS=JOINED_ROWS, JOINED=JOINED_VALUES // (JOINED_ROWS * width),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


_counting: dict[tuple[torch.device, int], Tensor] = {}
"""Per device and stream: calls on one stream run in order, and each leaves zeros."""


def _counters(device: torch.device, programs: int) -> Tensor:
    """At least ``programs`` int32 zeros that calls on other streams do not use."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(programs, dtype=torch.int32, device=device)  # the graph's own, cleared at every replay
    key = (device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    if key not in _counting or len(_counting[key]) < programs:
        _counting[key] = torch.zeros(max(programs, 4096), dtype=torch.int32, device=device)
    return _counting[key]
