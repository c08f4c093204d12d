"""Captures RMSNorm, rotary embedding and the gate of an MLP (``capture/gated.py``) as one op each.

They are not recognised by class: a module or function runs on random numbers, and its result is compared with the
formula. Anything that is not recognised stays as plain operations, which is exact too.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from edgecompress.capture.cached_attention import current_run
from edgecompress.capture.gated import replace_gated_mlp
from edgecompress.errors import StudentError
from edgecompress.graph.ops import DOMAIN

_TAG = "_edgecompress_rotary"
_EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon")
_TABLE_ONLY = ("dynamic", "longrope")  # their forward depends on all positions of the call


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """How a function rotates: which columns of cos hold the angles, and how it pairs the elements of a head."""

    columns: str  # "first-half", "even", "all"
    interleaved: bool

    def half(self, wide: torch.Tensor) -> torch.Tensor:
        """[..., R] as the model computes it -> [..., R / 2], one column per pair."""
        if self.columns == "all":
            return wide
        return wide[..., ::2] if self.columns == "even" else wide[..., : wide.shape[-1] // 2]


@dataclass(frozen=True, kw_only=True)
class _Tag:
    """Attached to cos and sin, to link the module that computed them with the function that uses them."""

    source: str
    position_ids: torch.Tensor


@dataclass
class RotaryTables:
    """Filled by the probe run: cos and sin of every position, float32 [P, R], keyed by the call that computes them."""

    context_tokens: int
    wide: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    rotations: dict[tuple[Any, ...], Rotation | None] = field(default_factory=dict)
    used: dict[tuple[str, str], Rotation] = field(default_factory=dict)  # (source, columns)

    def halves(self) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
        """cos and sin, float32 [P, R / 2], for every table that a recognised rotation reads."""
        return {
            key: tuple(rotation.half(table).contiguous() for table in self.wide[key[0]])  # type: ignore[misc]
            for key, rotation in self.used.items()
        }


@contextmanager
def whole_pieces(model: torch.nn.Module, tables: RotaryTables) -> Iterator[None]:
    """Inside the block, RMSNorms, rotary embeddings and MLP gates of ``model`` emit one op each."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            _replace_norm(module, stack)
            replace_gated_mlp(module, stack)
            _replace_rotary_module(name, module, tables, stack)
        for owner in {sys.modules[type(module).__module__] for module in model.modules()}:
            function = getattr(owner, "apply_rotary_pos_emb", None)
            if callable(function) and "transformers" in owner.__name__:
                stack.callback(setattr, owner, "apply_rotary_pos_emb", function)
                owner.apply_rotary_pos_emb = _rotation_as_one_op(function, tables)  # type: ignore[attr-defined]
        yield


# --- RMSNorm


def _replace_norm(module: torch.nn.Module, stack: ExitStack) -> None:
    if "Norm" not in type(module).__name__ or next(module.children(), None) is not None:
        return
    parameters = dict(module.named_parameters(recurse=False))
    epsilon = next((getattr(module, n) for n in _EPSILON_NAMES if isinstance(getattr(module, n, None), float)), None)
    if set(parameters) != {"weight"} or parameters["weight"].dim() != 1 or epsilon is None:
        return
    offset = norm_offset(module, float(epsilon))
    if offset is None:
        return

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::RMSNorm",
            [x, weight if offset == 0 else weight + offset],
            attrs={"epsilon": float(epsilon)},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )

    module.forward = forward
    stack.callback(delattr, module, "forward")


def norm_offset(module: torch.nn.Module, epsilon: float) -> float | None:
    """0 for ``weight * x / rms(x)``, 1 for ``(1 + weight) * x / rms(x)``, None for anything else."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(module)
    parameter: torch.Tensor = twin.weight  # type: ignore[assignment]
    weight = torch.randn(parameter.shape, generator=generator)
    x = torch.randn((3, 4, weight.shape[0]), generator=generator)
    x[0] *= epsilon**0.5  # small enough for epsilon to show
    try:
        with torch.no_grad():
            parameter.copy_(weight)
            found = twin(x)
    except Exception:  # a norm with more arguments than x
        return None
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
    for offset in (0.0, 1.0):
        if torch.allclose(found, (weight + offset) * plain, rtol=1e-5, atol=1e-6):
            return offset
    return None


# --- rotary embedding


def _replace_rotary_module(name: str, module: torch.nn.Module, tables: RotaryTables, stack: ExitStack) -> None:
    if not type(module).__name__.endswith("RotaryEmbedding"):
        return
    original = module.forward

    def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if position_ids.dim() != 2 or any(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values())):
            return original(x, position_ids, *args, **kwargs)
        source = "/".join(map(str, [name, *args, *kwargs.values()]))
        if source not in tables.wide:
            with unset_fake_temporarily():
                table = _table(original, module, tables.context_tokens, *args, **kwargs)
            if table is None:
                return original(x, position_ids, *args, **kwargs)
            tables.wide[source] = table
        if any(kind in _TABLE_ONLY for kind in _rope_types(module, *args, *kwargs.values())):
            cos, sin = (table[position_ids] for table in tables.wide[source])
        else:
            cos, sin = original(x, position_ids, *args, **kwargs)
        tag = _Tag(source=source, position_ids=position_ids)
        setattr(cos, _TAG, tag)
        setattr(sin, _TAG, tag)
        return cos, sin

    module.forward = forward
    stack.callback(delattr, module, "forward")


def _rope_types(module: torch.nn.Module, *arguments: Any) -> set[str]:
    kinds = getattr(module, "rope_type", "default")
    if isinstance(kinds, dict):
        return {str(kinds[a]) for a in arguments if a in kinds} or set(map(str, kinds.values()))
    return {str(kinds)}


def _table(
    original: Callable[..., Any], module: torch.nn.Module, context_tokens: int, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """cos and sin, float32 [P, R], of positions 0 to P - 1; None if the module returns anything else.

    Raises StudentError if the angles of a position depend on the length of the call.
    """
    x = torch.zeros((1, 1, 1))
    with torch.no_grad():
        found = original(x, torch.arange(context_tokens)[None], *args, **kwargs)
        if not (isinstance(found, tuple) and len(found) == 2 and all(t.dim() == 3 for t in found)):
            return None
        few = min(8, context_tokens)
        first = original(x, torch.arange(few)[None], *args, **kwargs)
    for whole, part in zip(found, first, strict=True):
        if not torch.equal(whole[:, :few], part):
            raise StudentError(
                f"the rotary embedding ({', '.join(sorted(_rope_types(module, *args)))}) changes with the length of "
                "the text, which would invalidate cached keys",
                hint="Give a --max-length within the model's original context.",
            )
    return found[0][0].float().contiguous(), found[1][0].float().contiguous()


def _rotation_as_one_op(function: Callable[..., Any], tables: RotaryTables) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def apply(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)
        cos, sin = bound.get("cos"), bound.get("sin")
        tag: _Tag | None = getattr(cos, _TAG, None)
        same = tag is not None and getattr(sin, _TAG, None) is tag
        names = [name for name in bound if isinstance(bound[name], torch.Tensor) and name in ("q", "k", "x")]
        run = current_run()
        if tag is None or not same or run is None or bound.get("unsqueeze_dim", 1) != 1 or not names:
            return function(*args, **kwargs)
        sizes = tuple(int(bound[name].shape[-1]) for name in names)
        key = (function, tag.source, sizes)
        if run.is_probe and key not in tables.rotations:
            with unset_fake_temporarily():
                tables.rotations[key] = recognise(function, names, sizes, tables.wide[tag.source])
        rotation = tables.rotations.get(key)
        if rotation is None:
            return function(*args, **kwargs)
        table = (tag.source, rotation.columns)
        if run.is_probe:
            tables.used[table] = rotation
            return function(*args, **kwargs)
        rotated = [_emit(bound[name], tag.position_ids, run.tables[table], rotation) for name in names]
        return tuple(rotated) if len(rotated) > 1 else rotated[0]

    return apply


def _emit(
    x: torch.Tensor, position_ids: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], rotation: Rotation
) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Rotary",
        [x, position_ids, *table],
        attrs={"interleaved": int(rotation.interleaved), "rotary_dim": 2 * int(table[0].shape[1])},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


def recognise(
    function: Callable[..., Any],
    names: list[str],
    sizes: tuple[int, ...],
    wide: tuple[torch.Tensor, torch.Tensor],
) -> Rotation | None:
    """Identify a rotation function on random numbers; None if it is not a known one.

    ``names`` are its arguments to rotate, ``sizes`` their head sizes, ``wide`` cos and sin [P, R].
    """
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, wide[0].shape[0], (2, 5), generator=generator)
    tensors = [torch.randn((2, 3, 5, size), generator=generator) for size in sizes]
    cos, sin = wide[0][positions], wide[1][positions]
    try:
        found = function(**dict(zip(names, tensors, strict=True)), cos=cos, sin=sin)
    except Exception:  # a function with another signature
        return None
    results = list(found) if isinstance(found, tuple) else [found]
    for columns in ("first-half", "even", "all"):
        for interleaved in (False, True):
            rotation = Rotation(columns=columns, interleaved=interleaved)
            if cos.shape[-1] % 2 and columns != "all":
                continue
            ours = [rotate(t, rotation.half(cos), rotation.half(sin), interleaved) for t in tensors]
            if len(ours) == len(results) and all(
                a is not None and a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)
                for a, b in zip(ours, results, strict=True)
            ):
                return rotation
    return None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor | None:
    """The formula of ``edgecompress::Rotary``: x [B, H, T, D], cos and sin [B, T, R / 2]; None if R > D."""
    size = 2 * cos.shape[-1]
    if size > x.shape[-1]:
        return None
    cos, sin = cos[:, None], sin[:, None]
    turned, passed = x[..., :size], x[..., size:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned[..., : size // 2], turned[..., size // 2 :]
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((out, passed), -1)
