"""The attention kernels as an attention implementation of transformers, for profiling students.

``model.set_attn_implementation(register())``. For inference only: there is no backward pass. Unsupported features
(sinks, position biases, custom masks) raise an error instead of being ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from edgecompress_kernels.gpu.attention import KernelInputError, decode, prefill

if TYPE_CHECKING:
    from torch import Tensor

NAME = "edgecompress_triton"
DECODE_TOKENS = 8  # up to this many new tokens use the decode kernel; more are a prefill
_KNOWN_MASKS = ("causal_mask_function", "bidirectional_mask_function")
_KNOWN_OVERLAYS = ("sliding_window_overlay", "sliding_window_bidirectional_overlay", "and_masks")
_NOT_COMPUTED = ("s_aux", "position_bias", "cache", "head_mask")


def register() -> str:
    """Register the kernels with transformers as ``NAME``, and return that name."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, padding_mask)
    return NAME


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **settings: Any,
) -> Tensor | None:
    """Return the mask that transformers passes to ``attend``: bool [B, keys], True for existing keys, or None for all.

    Raises KernelInputError for a mask with more than causal order, a window and padding.
    """
    if mask_function is not None and (settings.get("use_vmap") or not all(map(_is_known, _parts(mask_function)))):
        names = ", ".join(sorted({part.__qualname__.split(".")[0] for part in _parts(mask_function)}))
        raise KernelInputError(f"this model uses the mask {names}, which the kernels do not support: use 'sdpa'")
    if attention_mask is None:
        if int(q_offset) + q_length != kv_offset + kv_length:
            raise KernelInputError("a cache of fixed size needs an attention_mask that marks the existing keys")
        return None
    attention_mask = attention_mask[:, -kv_length:].bool()
    if attention_mask.shape[1] == kv_length and bool(attention_mask.all()):
        return None
    return attention_mask


def _parts(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a mask function and the functions that it combines."""
    yield function
    for cell in getattr(function, "__closure__", None) or ():
        held = cell.cell_contents
        for part in held if isinstance(held, (tuple, list)) else (held,):
            if callable(part):
                yield from _parts(part)


def _is_known(function: Callable[..., Any]) -> bool:
    name = function.__qualname__
    return name in _KNOWN_MASKS or name.split(".")[0] in _KNOWN_OVERLAYS


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """query [B, Hq, T, D], key and value [B, Hk, S, D], mask bool [B, S] or None -> [B, T, Hq, D], and no weights.

    Padding tokens attend to nothing and give zeros.

    Raises KernelInputError for features that the kernels do not support.
    """
    odd = [name for name in _NOT_COMPUTED if settings.get(name) is not None]
    odd += ["dropout"] * bool(dropout) + ["output_attentions"] * bool(settings.get("output_attentions"))
    if odd:
        raise KernelInputError(f"the kernels do not support {', '.join(odd)}: use 'sdpa' or 'eager' for this model")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise KernelInputError("the kernels have no backward pass: call the model under torch.inference_mode()")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise KernelInputError("4D masks are not supported: pass the model a 2D attention_mask of 0 and 1")
    batch, _, tokens, head = query.shape
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = head**-0.5 if scaling is None else scaling
    numbers: dict[str, Any] = {"scale": scale, "window": sliding_window or 0, "soft_cap": softcap or 0.0}
    if attention_mask is not None:
        key, value = (x[:, :, : attention_mask.shape[1]] for x in (key, value))
    keys = key.shape[2]
    query = query.transpose(1, 2)
    if attention_mask is None and tokens <= DECODE_TOKENS and (causal or (tokens == 1 and not sliding_window)):
        lengths = torch.full((batch,), keys, dtype=torch.int32, device=query.device)
        return decode(query, key, value, lengths, longest=keys, **numbers), None

    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if attention_mask is None:
        q_starts, k_starts = (
            torch.arange(0, (batch + 1) * n, n, dtype=torch.int32, device=query.device) for n in (tokens, keys)
        )
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))
        out = prefill(q, k, v, q_starts, k_starts, longest=tokens, causal=causal, **numbers)
        return out.view(query.shape), None

    # Padding is removed from keys, and from queries, which are the mask's last columns unless another text is read
    of_queries = attention_mask[:, -tokens:]
    if not causal and tokens != keys:
        of_queries = torch.ones((batch, tokens), dtype=torch.bool, device=query.device)
    q_starts, k_starts = (
        torch.nn.functional.pad(m.sum(-1).cumsum(0), (1, 0)).int() for m in (of_queries, attention_mask)
    )
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    q, k, v = query[of_queries], key[attention_mask], value[attention_mask]
    out[of_queries] = prefill(q, k, v, q_starts, k_starts, longest=tokens, causal=causal, **numbers)
    return out, None
