"""Captures the experts of a mixture as one op: ``edgecompress::Experts``.

transformers has a registry for expert implementations, as for attention, so no table of model classes is needed. The
gate function is identified on random numbers. If it is not recognised, the experts stay plain operations that gather
the weights for each token, which is exact but slow.

The op, for N tokens that each go to k of E experts, hidden size H and inner size I:
inputs  x float32 [N, H], chosen int64 [N, k], weights float32 [N, k], gate_up float32 [E, 2 I, H], down float32
        [E, H, I] and optionally gate_up_bias [E, 2 I] and down_bias [E, H];
output  float32 [N, H], the sum over the chosen experts of ``weight * (down @ act(gate_up @ x + bias) + bias)``;
rows    of gate_up alternate: gate, up, gate, up. :func:`arrange_experts` brings the exporter's weights into this order;
act     by ``activation``: "swiglu" is ``g * sigmoid(alpha * g) * (u + beta)`` with g at most ``limit`` and u between
        ``-limit`` and ``limit``; "gelu", "gelu_tanh" and "relu" are ``activation(g) * u``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward

from edgecompress.graph.ops import DOMAIN

IMPLEMENTATION = "edgecompress-experts"

_GATE = "_edgecompress_gate"
_NO_LIMIT = float("inf")
_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda g: functional.gelu(g, approximate="tanh"),
    "relu": functional.relu,
}


def register_experts() -> None:
    """Register the implementation's name, so that a model can be built with it."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts)


def find_gates(model: torch.nn.Module) -> None:
    """Identify the gate of every experts module of ``model``; call this before the model is traced."""
    for module in model.modules():
        if hasattr(module, "_apply_gate"):
            setattr(module, _GATE, _gate(module))


def _experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Emit one op: x [N, H], chosen and weights [N, k] -> [N, H]."""
    gate: dict[str, Any] | None = getattr(module, _GATE, None)
    if gate is None:
        plain: torch.Tensor = batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return plain
    weights = [module.gate_up_proj, module.down_proj]
    if module.has_bias:
        weights += [module.gate_up_proj_bias, module.down_proj_bias]
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Experts",
        [hidden_states, top_k_index, top_k_weights.to(hidden_states.dtype), *weights],
        attrs={
            **gate,
            "k": int(top_k_index.shape[-1]),
            "concatenated": int(module.is_concatenated),  # removed again by arrange_experts, like the next one
            "transposed": int(module.is_transposed),
        },
        dtype=hidden_states.dtype,
        shape=hidden_states.shape,
        version=1,
    )


def _gate(module: Any) -> dict[str, Any] | None:
    """The op's attributes for the gate between the two products; None if the op cannot express it."""
    if not module.has_gate or module.has_post_expert_norm or module._is_expert_parallel:
        return None
    return recognise_gate(module._apply_gate, concatenated=module.is_concatenated, known=_numbers(module))


def _numbers(module: torch.nn.Module) -> list[float]:
    """The module's float attributes; a limit or factor of its gate is among them."""
    return [float(value) for value in vars(module).values() if isinstance(value, float)]


def recognise_gate(
    apply: Callable[[torch.Tensor], torch.Tensor], *, concatenated: bool, known: list[float]
) -> dict[str, Any] | None:
    """Identify the gate ``apply``, [S, 2 I] -> [S, I], on random numbers: the op's attributes, or None.

    ``known`` are candidates for its alpha and its limit.
    """
    generator = torch.Generator().manual_seed(0)
    wide = 4 * max([1.0, *(abs(number) for number in known if np.isfinite(number))])
    rows = torch.randn((64, 2 * 8), generator=generator)
    rows = torch.cat([rows, rows * wide])  # large enough for a limit to show
    try:
        with torch.no_grad():
            found = apply(rows)
    except Exception:  # a gate with more arguments
        return None
    gate, up = rows.chunk(2, -1) if concatenated else (rows[:, ::2], rows[:, 1::2])
    for name, activation in _PLAIN.items():
        if _same(found, activation(gate) * up):
            return {"activation": name}
    for limit in (_NO_LIMIT, *known):
        for alpha in (1.0, *known):
            for beta in (0.0, 1.0):
                if limit > 0 and _same(found, swiglu(gate, up, alpha, beta, limit)):
                    made: dict[str, Any] = {"activation": "swiglu", "alpha": alpha, "beta": beta}
                    return made if limit == _NO_LIMIT else made | {"limit": limit}
    return None


def swiglu(gate: torch.Tensor, up: torch.Tensor, alpha: float, beta: float, limit: float) -> torch.Tensor:
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def arrange_experts(model: ir.Model) -> int:
    """Bring the weights of every Experts op into the op's order, in place; return the number of ops.

    Weights are rearranged when they are read, so that only one layer of them is in memory at a time.
    """
    graph = model.graph
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "Experts"]
    for node in nodes:
        concatenated = bool(node.attributes.pop("concatenated").as_int())
        transposed = bool(node.attributes.pop("transposed").as_int())
        for position, pairs in ((3, concatenated), (4, False), (5, concatenated)):
            value = node.inputs[position] if position < len(node.inputs) else None
            turned = transposed and position < 5
            if value is not None and (pairs or turned):
                node.replace_input_with(position, _arranged(graph, value, pairs=pairs, turned=turned))
    return len(nodes)


def _arranged(graph: ir.Graph, value: ir.Value, *, pairs: bool, turned: bool) -> ir.Value:
    """A new initializer: ``turned`` [E, K, N] -> [E, N, K], then with ``pairs`` the halves of N alternate."""
    tensor = value.const_value
    assert tensor is not None
    assert value.name is not None
    name = f"{value.name}.arranged"
    if name in graph.initializers:
        return graph.initializers[name]

    def read() -> ir.TensorProtocol:
        array = tensor.numpy()
        if turned:
            array = array.swapaxes(1, 2)
        if pairs:
            array = np.stack(np.split(array, 2, axis=1), axis=2).reshape(array.shape)
        return ir.tensor(np.ascontiguousarray(array), name=name)

    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[0], sizes[2], sizes[1]] if turned else sizes)
    lazy = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=shape, name=name)
    made = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=lazy)
    graph.register_initializer(made)
    if len(value.uses()) == 1:
        del graph.initializers[value.name]
    return made
