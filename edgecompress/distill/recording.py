"""The queries, keys and values of a model's attention, for any architecture.

They come from transformers' AttentionInterface, as in the capture: one function serves every model that uses it, and
no table of module names is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "edgecompress-recording"


class Heads(NamedTuple):
    """Of one layer, float32 [B, H, T, D] each; grouped-query attention has fewer key and value heads than queries."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


_recorded: ContextVar[list[Heads] | None] = ContextVar("attention_heads", default=None)


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
) -> Any:
    seen = _recorded.get()
    if seen is not None:
        seen.append(Heads(query, key, value))
    return sdpa_attention_forward(module, query, key, value, *rest, **named)


def register() -> None:
    """Register the implementation with transformers; safe to repeat."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def record_heads() -> Iterator[list[Heads]]:
    """Collect the heads of every attention that runs inside, in order."""
    seen: list[Heads] = []
    token = _recorded.set(seen)
    try:
        yield seen
    finally:
        _recorded.reset(token)
