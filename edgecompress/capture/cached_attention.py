"""Captures a decoder's attention and its KV cache as one op: ``edgecompress::CachedAttention``.

This is a second interface beside the one for encoders (``capture/attention.py``), because a decoder's mask is part of
the op: causal, optionally with a window. transformers' mask function is evaluated once on real positions to find its
rule; a rule that the op cannot express is refused with the reason.
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

from edgecompress.capture.attention import UNSUPPORTED
from edgecompress.errors import StudentError
from edgecompress.graph.ops import DOMAIN

IMPLEMENTATION = "edgecompress-cached"

_RULE = "_edgecompress_rule"

# Keyword arguments that change neither which keys are visible nor how they are weighted.
_HARMLESS = {
    "position_ids", "output_attentions", "output_hidden_states", "output_router_logits", "cache_position", "use_cache",
    "return_dict", "deterministic", "past_key_values", "layer_idx", "is_causal", "position_embeddings",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The shape of one layer's attention."""

    name: str
    heads: int
    kv_heads: int
    head_size: int
    value_head_size: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The rule of a causal mask: ``window`` tokens are visible, the token itself included; None: all past tokens."""

    window: int | None


@dataclass(kw_only=True)
class CachedRun:
    """One forward pass of a decoder under the interface.

    attention_mask int64 [B, S]; past is one (key, value) pair [B, Hk, C, D] per layer, or None in the probe run, which
    only records the shapes of the layers. ``tables`` are the rotary tables by key (see ``capture/pieces.py``).
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
    """Register the implementation's name, so that a model can be built with it."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)


def current_run() -> CachedRun | None:
    return _run.get()


class _UnknownLength:
    """The number of cached tokens, which differs between rows. Any arithmetic on it raises StudentError."""

    def _refuse(self, *_: object) -> NoReturn:
        raise StudentError(
            "this architecture takes positions from the length of its cache, which differs between the rows of a batch",
            hint=UNSUPPORTED,
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __index__ = __int__ = __float__ = __bool__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __floordiv__ = __mod__ = _refuse


class _OtherStateError(StudentError, AttributeError):
    """Also an AttributeError, so that a model's ``hasattr`` on its cache works."""


class HandThroughCache:
    """Stands in for the KV cache: returns keys and values unchanged, because the op itself stores them."""

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
            f"this architecture keeps more between tokens than keys and values: it reads '{name}' from its cache",
            hint=f"Recurrent, convolutional and shared caches are not supported. {UNSUPPORTED}",
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
        raise StudentError(f"{name} was called outside a capture", hint="Capture the model with `edgecompress export`.")
    rule = getattr(attention_mask, _RULE, None)
    if not isinstance(rule, _Rule):
        raise StudentError(f"{name} changes the attention mask or builds its own", hint=UNSUPPORTED)
    if sliding_window is not None and rule.window != sliding_window:
        raise StudentError(
            f"{name} has a window of {sliding_window} tokens, but its mask has {rule.window or 'none'}",
            hint=UNSUPPORTED,
        )
    meaningful = {k for k, v in kwargs.items() if v is not None and v is not False and k not in _HARMLESS}
    if meaningful or isinstance(scaling, torch.Tensor):
        what = ", ".join(sorted(meaningful)) or "a computed scale"
        raise StudentError(f"{name} passes {what} to its attention, which this version cannot export", hint=UNSUPPORTED)
    handed, run.handed = run.handed, None
    if handed is None or handed[0] is not key or handed[1] is not value:
        raise StudentError(f"{name} attends to other keys than those it caches", hint=UNSUPPORTED)
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
        # transformers counts the token itself (i - j < window); the op stores the number of visible past tokens.
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
    """Return the padding mask, tagged with the rule of transformers' own mask."""
    run = _run.get()
    padding = kwargs.get("attention_mask")
    if run is None or not isinstance(padding, torch.Tensor):
        return None
    window = kwargs.get("local_size")
    function = kwargs.get("mask_function")
    if kwargs.get("use_vmap") or not callable(function) or (run.is_probe and not _is_causal(function, window)):
        raise StudentError(
            "this architecture's attention mask is something else than causal with a sliding window", hint=UNSUPPORTED
        )
    marked = padding.clone()
    setattr(marked, _RULE, _Rule(window=int(window) if window is not None else None))
    return marked


def _is_causal(function: Callable[..., torch.Tensor], window: int | None) -> bool:
    """Whether transformers' mask function shows key j to query i exactly if j <= i and i - j < window."""
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
        except Exception:  # the function needs more than positions
            return False
