"""The gated MLP caught while a decoder is captured: ``down(act(gate(x)) * up(x))``.

What stands between its linear layers becomes one op, ``edgecompress::Gated``: gate and up float32 [..., I] -> [..., I],
``act(gate) * up`` with ``activation`` "silu", "gelu", "gelu_tanh" or "relu". The layers themselves stay where they are
quantized and packed, so that gate, up, the op and down can be taken together by what lowers them.

An MLP is not found by its class: its layers are made to give random numbers, and what reaches the last of them is held
against the formula. What is not recognised stays as the plain operations it is made of.
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
    """``first`` are gate and up, or one layer that gives both side by side."""

    first: tuple[torch.nn.Module, ...]
    down: torch.nn.Module
    activation: str
    turned: bool  # up stands before gate

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        parts = [layer(x) for layer in self.first] if len(self.first) > 1 else list(self.first[0](x).chunk(2, dim=-1))
        gate, up = reversed(parts) if self.turned else parts
        found: torch.Tensor = self.down(_emit(gate, up, self.activation))
        return found


def catch_gated_mlp(module: torch.nn.Module, stack: ExitStack) -> None:
    """Make ``module`` emit the op until ``stack`` closes, if it is a gated MLP."""
    found = recognise_mlp(module)
    if found is not None:
        module.forward = lambda x: found(x)
        stack.callback(delattr, module, "forward")


def _emit(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Gated", [gate, up], attrs={"activation": activation}, dtype=gate.dtype, shape=gate.shape, version=1
    )


def recognise_mlp(module: torch.nn.Module) -> GatedMLP | None:
    """What ``module`` is, found on random numbers without reading a weight; None if it is no gated MLP."""
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
        for layer, answer in zip((*first, down), (*(_says(part) for part in given), end), strict=True):
            layer.forward = answer  # type: ignore[method-assign, assignment]
            stack.callback(delattr, layer, "forward")
        try:
            with torch.no_grad():
                result = module(x)
        except Exception:  # a module that takes more than x
            return None
    if result is not x or len(seen) != 1:  # something stands behind the last layer
        return None
    parts = given if len(given) > 1 else list(given[0].chunk(2, dim=-1))
    for turned in (False, True):
        gate, up = reversed(parts) if turned else parts
        for name, activation in ACTIVATIONS.items():
            if seen[0].shape == up.shape and torch.allclose(seen[0], activation(gate) * up, rtol=1e-5, atol=1e-6):
                return GatedMLP(first=first, down=down, activation=name, turned=turned)
    return None


def _says(answer: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _: answer
