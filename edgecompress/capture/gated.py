"""Captures the gate of a gated MLP, ``down(act(gate(x)) * up(x))``, as one op.

The op between its linear layers is ``edgecompress::Gated``: gate and up float32 [..., I] -> [..., I],
``act(gate) * up`` with ``activation`` "silu", "gelu", "gelu_tanh" or "relu". The linear layers stay separate nodes, so
that they can be quantized and packed; a lowering may still fuse gate, up, the op and down.

MLPs are not recognised by class: their layers are replaced by random outputs, and the input of the last layer is
compared with the formula. An MLP that is not recognised stays as plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch.nn import functional

from edgecompress.graph.ops import DOMAIN

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    "relu": functional.relu,
}


@dataclass(frozen=True, kw_only=True)
class GatedMLP:
    """``first`` is gate and up, or one layer whose output holds both side by side."""

    first: tuple[torch.nn.Module, ...]
    down: torch.nn.Module
    activation: str
    turned: bool  # up comes before gate

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        parts = [layer(x) for layer in self.first] if len(self.first) > 1 else list(self.first[0](x).chunk(2, dim=-1))
        gate, up = reversed(parts) if self.turned else parts
        found: torch.Tensor = self.down(_emit(gate, up, self.activation))
        return found


def replace_gated_mlp(module: torch.nn.Module, stack: ExitStack) -> None:
    """If ``module`` is a gated MLP, make it emit the op until ``stack`` closes."""
    found = recognise_mlp(module)
    if found is not None:
        module.forward = lambda x: found(x)
        stack.callback(delattr, module, "forward")


def _emit(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Gated", [gate, up], attrs={"activation": activation}, dtype=gate.dtype, shape=gate.shape, version=1
    )


def recognise_mlp(module: torch.nn.Module) -> GatedMLP | None:
    """Identify a gated MLP on random numbers, without reading a weight; None if ``module`` is not one."""
    linears = [child for child in module.children() if isinstance(child, torch.nn.Linear)]
    if len(linears) not in (2, 3):
        return None
    for down in linears:
        first = tuple(layer for layer in linears if layer is not down)
        widths = {layer.out_features for layer in first}
        hidden = {layer.in_features for layer in first} | {down.out_features}
        if len(widths) == len(hidden) == 1 and sum(layer.out_features for layer in first) == 2 * down.in_features:
            return _match(module, first, down)
    return None


def _match(module: torch.nn.Module, first: tuple[torch.nn.Linear, ...], down: torch.nn.Linear) -> GatedMLP | None:
    generator = torch.Generator().manual_seed(0)
    given = [3 * torch.randn((2, 3, layer.out_features), generator=generator) for layer in first]
    x = torch.randn((2, 3, first[0].in_features), generator=generator)
    seen: list[torch.Tensor] = []

    def end(value: torch.Tensor) -> torch.Tensor:
        seen.append(value)
        return x

    with ExitStack() as stack:
        for layer, answer in zip((*first, down), (*(_returning(part) for part in given), end), strict=True):
            layer.forward = answer  # type: ignore[method-assign, assignment]
            stack.callback(delattr, layer, "forward")
        try:
            with torch.no_grad():
                result = module(x)
        except Exception:  # a module with more arguments than x
            return None
    if result is not x or len(seen) != 1:  # something follows the last layer
        return None
    parts = given if len(given) > 1 else list(given[0].chunk(2, dim=-1))
    for turned in (False, True):
        gate, up = reversed(parts) if turned else parts
        for name, activation in ACTIVATIONS.items():
            if seen[0].shape == up.shape and torch.allclose(seen[0], activation(gate) * up, rtol=1e-5, atol=1e-6):
                return GatedMLP(first=first, down=down, activation=name, turned=turned)
    return None


def _returning(answer: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _: answer
