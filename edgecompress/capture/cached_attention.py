"""A decoder's attention as one op with its past: ``edgecompress::CachedAttention``.

The encoders' interface (``capture/attention.py``) has a sister here under a name of its own, because a decoder's mask
is part of the op: causal, perhaps with a window. transformers' mask function is asked once, on numbers, what it would
have said; what the op cannot say is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from edgecompress.errors import StudentError
from edgecompress.graph.ops import DOMAIN

IMPLEMENTATION = "edgecompress-cached"

_RULE = "_edgecompress_rule"
_NO_WAY = "The exported model would silently differ, so it is refused."

# Keyword arguments that say nothing about which keys are seen or how they are weighed.
_HARMLESS = {
    "position_ids", "output_attentions", "output_hidden_states", "output_router_logits", "cache_position", "use_cache",
    "return_dict", "deterministic", "past_key_values", "layer_idx", "is_causal", "position_embeddings",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The shape of one layer's attention, in the order of the calls."""

    name: str
    heads: int
    kv_heads: int
    head_size: int
    value_head_size: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What a mask said: causal, with ``window`` tokens seen (the token itself included) or all of them."""

    window: int | None


@dataclass(kw_only=True)
class CachedRun:
    """One forward pass of a decoder under the interface.

    attention_mask int64 [B, S]; past is a (key, value) pair [B, Hk, C, D] a layer, or None in the probe, which only
    finds out what the layers are. ``tables`` are the rotary tables by their key (see ``capture/pieces.py``).
    """

    attention_mask: torch.Tensor
    past: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    tables: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    calls: list[AttentionCall] = field(default_factory=list)
    presents: list[torch.Tensor] = field(default_factory=list)
    handed: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def is_probe(self) -> bool:
        return self.past is None


_run: ContextVar[CachedRun | None] = ContextVar("cached_run", default=None)


@contextmanager
def running(run: CachedRun) -> Iterator[CachedRun]:
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)


def register() -> None:
    """Make the implementation's name known, so that a model can be built with it."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)


def current_run() -> CachedRun | None:
    return _run.get()


class _UnknownLength:
    """The number of cached tokens, which differs from row to row: whoever computes with it is refused."""

    def _refuse(self, *_: object) -> NoReturn:
        raise StudentError(
            "this architecture takes positions from the length of its cache, which differs between the rows of a batch",
            hint=_NO_WAY,
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __index__ = __int__ = __float__ = __bool__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __floordiv__ = __mod__ = _refuse


class _OtherStateError(StudentError, AttributeError):
    """An AttributeError too, so that a model may ask whether its cache has something."""


class HandThroughCache:
    """What a model takes for its KV cache: hands keys and values through untouched, for the op keeps them itself."""

    is_compileable = False
    is_initialized = True
    is_sliding: tuple[bool, ...] = ()

    def __init__(self, run: CachedRun) -> None:
        self._run = run

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._run.handed = (key, value)
        return key, value

    def get_seq_length(self, *_: object) -> Any:
        return _UnknownLength()

    def get_mask_sizes(self, *_: object) -> tuple[Any, int]:
        return self._run.attention_mask.shape[1], 0

    def get_query_offset(self, *_: object) -> int:
        return 0

    def __getattr__(self, name: str) -> NoReturn:
        raise _OtherStateError(
            f"this architecture keeps more between tokens than keys and values: it asks its cache for '{name}'",
            hint="Recurrent, convolutional and shared caches are not supported by this version.",
        )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Emit one ``edgecompress::CachedAttention``: query [B, Hq, T, D], key and value [B, Hk, T, D] -> [B, T, Hq, D]."""
    name = type(module).__name__
    run = _run.get()
    if run is None:
        raise StudentError(f"{name} was run outside of a capture")
    rule = getattr(attention_mask, _RULE, None)
    if not isinstance(rule, _Rule):
        raise StudentError(f"{name} changes the attention mask, or makes one of its own", hint=_NO_WAY)
    if sliding_window is not None and rule.window != sliding_window:
        raise StudentError(
            f"{name} asks for a window of {sliding_window} tokens, and its mask has {rule.window or 'none'}",
            hint=_NO_WAY,
        )
    meaningful = {k for k, v in kwargs.items() if v is not None and v is not False and k not in _HARMLESS}
    if meaningful or isinstance(scaling, torch.Tensor):
        what = ", ".join(sorted(meaningful)) or "a scale that it computes"
        raise StudentError(f"{name} hands its attention {what}, which this version does not know", hint=_NO_WAY)
    handed, run.handed = run.handed, None
    if handed is None or handed[0] is not key or handed[1] is not value:
        raise StudentError(f"{name} attends to other keys than those it caches", hint=_NO_WAY)
    batch, heads, tokens, head_size = query.shape
    value_size = int(value.shape[3])
    index = len(run.calls)
    run.calls.append(
        AttentionCall(
            name=name,
            heads=int(heads),
            kv_heads=int(key.shape[1]),
            head_size=int(head_size),
            value_head_size=value_size,
            window=rule.window,
        )
    )
    if run.past is None:
        return query.new_empty((batch, tokens, heads, value_size)), None
    past_key, past_value = run.past[index]
    attributes: dict[str, Any] = {
        "scale": float(scaling) if scaling is not None else float(head_size) ** -0.5,
        "num_heads": int(heads),
        "kv_num_heads": int(key.shape[1]),
        "head_size": int(head_size),
    }
    if rule.window is not None:
        # The library counts the token itself (i - j < window); the op keeps the number of past tokens still seen.
        attributes["window"] = rule.window - 1
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::CachedAttention",
        [query, key, value, past_key, past_value, run.attention_mask, *([s_aux] if s_aux is not None else [])],
        attrs=attributes,
        dtypes=[query.dtype, key.dtype, value.dtype],
        shapes=[(batch, tokens, heads, value_size), past_key.shape, past_value.shape],
        version=1,
    )
    run.presents += [present_key, present_value]
    return output, None


def _mask(*_: Any, **kwargs: Any) -> torch.Tensor | None:
    """The padding mask, with what the library's own mask would have said written on it."""
    run = _run.get()
    padding = kwargs.get("attention_mask")
    if run is None or not isinstance(padding, torch.Tensor):
        return None
    window = kwargs.get("local_size")
    function = kwargs.get("mask_function")
    if kwargs.get("use_vmap") or not callable(function) or (run.is_probe and not _is_causal(function, window)):
        raise StudentError(
            "this architecture's attention mask is something else than causal with a sliding window", hint=_NO_WAY
        )
    marked = padding.clone()
    setattr(marked, _RULE, _Rule(window=int(window) if window is not None else None))
    return marked


def _is_causal(function: Callable[..., torch.Tensor], window: int | None) -> bool:
    """Ask the library's mask function, on numbers, whether key j is seen by query i: j <= i, and i - j < window."""
    reach = window or 8
    with unset_fake_temporarily():
        queries = torch.tensor(sorted({0, 1, 2, 5, max(0, reach - 1), reach, reach + 1, 2 * reach + 3, 3 * reach + 7}))
        query = queries[:, None]
        key = torch.arange(3 * reach + 12)[None, :]
        zero = torch.zeros((1, 1), dtype=torch.long)
        expected = key <= query
        if window is not None:
            expected = expected & (query - key < window)
        try:
            return bool(torch.equal(function(zero, zero, query, key).expand(expected.shape), expected))
        except Exception:  # a function that needs this batch's tensors is not one of positions alone
            return False
