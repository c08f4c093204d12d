"""Captures attention as one op, through transformers' AttentionInterface.

Other exporters recover attention from the exported graph by pattern matching, which breaks with every release of the
exporter. Here each layer's attention is one ``edgecompress::Attention`` node from the start, and `lower` maps it to the
target's op.

This module does not build masks. It replaces transformers' mask function by one that returns the plain padding mask.
Anything else the mask would express (a window, causality) is read from the call and becomes an attribute of the op;
otherwise the student is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from edgecompress.errors import StudentError
from edgecompress.graph.ops import DOMAIN

IMPLEMENTATION = "edgecompress"

UNSUPPORTED = "This architecture is not supported yet; run `edgecompress architectures` to list those that are."

_calls: ContextVar[list[str] | None] = ContextVar("attention_calls", default=None)

# Keyword arguments without effect on inference without a cache.
_HARMLESS = {"position_ids", "output_attentions", "cache_position", "use_cache", "return_dict", "deterministic"}


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Emit one ``edgecompress::Attention`` node.

    query [B, Hq, Tq, D], key and value [B, Hk, Tk, D], attention_mask bool or int [B, Tk] (1: attend) or None;
    returns [B, Tq, Hq, D].
    """
    name = type(module).__name__
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    if causal:
        raise StudentError(
            f"{name} attends causally, like a decoder, but the checkpoint has no language-model head",
            hint="Give the checkpoint that has the head (…ForCausalLM), or an encoder (BERT, MiniLM, ViT, …).",
        )
    if attention_mask is not None and attention_mask.dim() != 2:
        raise StudentError(
            f"{name} builds an attention mask of rank {attention_mask.dim()}, which cannot be exported as padding",
            hint=UNSUPPORTED,
        )
    meaningful = {k for k, v in kwargs.items() if v is not None and v is not False and k not in _HARMLESS}
    if meaningful:
        raise StudentError(
            f"{name} passes {', '.join(sorted(meaningful))} to its attention, which this version cannot export",
            hint=UNSUPPORTED,
        )
    calls = _calls.get()
    if calls is not None:
        calls.append(name)
    batch, heads, tokens, head_size = query.shape
    attributes: dict[str, Any] = {
        "scale": float(scaling) if scaling is not None else float(head_size) ** -0.5,
        "num_heads": int(heads),
        "head_size": int(head_size),
    }
    if sliding_window is not None:
        # The call counts windows like flash-attention (|i - j| < window); the op stores the largest distance.
        attributes["window"] = int(sliding_window) - 1
    inputs = [query, key, value] + ([attention_mask] if attention_mask is not None else [])
    output = torch.onnx.ops.symbolic(
        f"{DOMAIN}::Attention",
        inputs,
        attrs=attributes,
        dtype=query.dtype,
        shape=(batch, tokens, heads, head_size),
        version=1,
    )
    return output, None


def _padding_mask(*_: Any, **kwargs: Any) -> torch.Tensor | None:
    if kwargs.get("use_vmap"):
        raise StudentError(
            "this architecture combines its attention mask with another mask, which this version cannot export",
            hint=UNSUPPORTED,
        )
    mask = kwargs.get("attention_mask")
    return mask if isinstance(mask, torch.Tensor) else None


@contextmanager
def attention_as_one_op() -> Iterator[list[str]]:
    """Register the interface; yields the list of modules whose attention was called inside the block."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _padding_mask)
    calls: list[str] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)
