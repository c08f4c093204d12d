"""A mixture's gate is identified on random numbers, and its weights are brought into the op's order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from edgecompress.capture.experts import arrange_experts, recognise_gate, swiglu
from tests.graphs import graph_with_weights

Activation = Callable[[torch.Tensor], torch.Tensor]


def side_by_side(activation: Activation) -> Activation:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows.chunk(2, -1)
        return activation(gate) * up

    return apply


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (functional.silu, {"activation": "swiglu", "alpha": 1.0, "beta": 0.0}),
        (functional.gelu, {"activation": "gelu"}),
        (lambda g: functional.gelu(g, approximate="tanh"), {"activation": "gelu_tanh"}),
        (functional.relu, {"activation": "relu"}),
        (functional.mish, None),
        (lambda g: functional.silu(g).clamp(max=2.0), None),
    ],
)
def test_gates_side_by_side(activation: Activation, expected: dict[str, object] | None) -> None:
    assert recognise_gate(side_by_side(activation), concatenated=True, known=[2.0]) == expected


@pytest.mark.parametrize("limit", [0.5, 7.0])
def test_a_clamped_gate_that_alternates(limit: float) -> None:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        return swiglu(rows[:, ::2], rows[:, 1::2], 1.702, 1.0, limit)

    found = recognise_gate(apply, concatenated=False, known=[1.702, limit])
    assert found == {"activation": "swiglu", "alpha": 1.702, "beta": 1.0, "limit": limit}
    assert recognise_gate(apply, concatenated=False, known=[1.702]) is None
    assert recognise_gate(apply, concatenated=True, known=[1.702, limit]) is None


def test_a_gate_with_more_arguments_is_not_recognised() -> None:
    assert recognise_gate(lambda rows, more: rows, concatenated=True, known=[]) is None  # type: ignore[misc, arg-type]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("concatenated", [0, 1])
def test_weights_are_arranged_for_the_op(concatenated: int, transposed: int, rng: np.random.Generator) -> None:
    experts, hidden, inner = 3, 4, 5
    wanted = {
        "gate_up": rng.normal(size=(experts, 2 * inner, hidden)).astype(np.float32),
        "down": rng.normal(size=(experts, hidden, inner)).astype(np.float32),
        "bias": rng.normal(size=(experts, 2 * inner)).astype(np.float32),
        "down_bias": rng.normal(size=(experts, hidden)).astype(np.float32),
    }
    given = dict(wanted)
    if concatenated:
        for name in ("gate_up", "bias"):
            given[name] = np.concatenate([wanted[name][:, ::2], wanted[name][:, 1::2]], axis=1)
    if transposed:
        given |= {name: given[name].swapaxes(1, 2).copy() for name in ("gate_up", "down")}
    declared = ", ".join(f"float[{','.join(map(str, array.shape))}] {name}" for name, array in given.items())
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[n,{hidden}] x, int64[n,2] c, float[n,2] w, {declared}) => (float[n,{hidden}] y)
        {{ y = edgecompress.Experts<k = 2, concatenated = {concatenated}, transposed = {transposed}>
               (x, c, w, {", ".join(given)}) }}
        """,
        given,
    )
    assert arrange_experts(model) == 1
    (node,) = model.graph
    assert set(node.attributes) == {"k"}
    for value, expected in zip(node.inputs[3:], wanted.values(), strict=True):
        assert value is not None
        assert isinstance(value.const_value, ir.TensorProtocol)
        np.testing.assert_array_equal(value.const_value.numpy(), expected)
    assert len(model.graph.initializers) == 4  # and nothing of the old order is kept
