"""Gated MLPs are recognised by what they compute; other modules are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import Linear, Module, functional

from edgecompress.capture.gated import ACTIVATIONS, recognise_mlp
from edgecompress.lower.microsoft import lower, lower_model
from tests.capture.test_decoders import captured, ops
from tests.graphs import graph_with_weights
from tests.quantize.test_quantize_graph import run

pytestmark = pytest.mark.slow

H, INNER = 12, 20


class Mlp(Module):
    """down(act(gate(x)) * up(x)), with meaningless names."""

    def __init__(self, activation: str = "silu") -> None:
        super().__init__()
        self.a, self.b, self.c = Linear(H, INNER), Linear(INNER, H), Linear(H, INNER, bias=False)
        self.act = ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x)) * self.c(x))


class UpFirst(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) * self.act(self.c(x)))


class Packed(Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.both = Linear(INNER, H), Linear(H, 2 * INNER)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, gate = self.both(x).chunk(2, -1)
        return self.down(up * functional.gelu(gate))


class Scaled(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class OtherGate(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.sigmoid(self.a(x)) * self.c(x))


class TakesMore(Mlp):
    def forward(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) + more


class TwoLayers(Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Linear(H, INNER), Linear(INNER, H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.up(x)))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_each_activation_is_recognised(activation: str) -> None:
    module = Mlp(activation)
    found = recognise_mlp(module)
    assert found is not None
    assert (found.activation, found.turned) == (activation, False)
    assert found.first == (module.a, module.c)
    assert found.down is module.b


def test_the_order_of_gate_and_up_is_found() -> None:
    for module, first in ((UpFirst(), 2), (Packed(), 1)):
        found = recognise_mlp(module)
        assert found is not None
        assert (found.turned, len(found.first)) == (True, first)


@pytest.mark.parametrize("module", [Scaled(), OtherGate(), TakesMore(), TwoLayers(), Linear(H, H)])
def test_other_modules_are_left_alone(module: Module) -> None:
    assert recognise_mlp(module) is None


def test_recognising_leaves_the_module_unchanged() -> None:
    module = Mlp()
    x = torch.randn(2, 3, H)
    before = module(x)
    recognise_mlp(module)
    assert torch.equal(module(x), before)
    assert not any("forward" in vars(child) for child in module.children())


@pytest.mark.parametrize(("name", "activation"), [("llama", "silu"), ("gemma2", "gelu_tanh"), ("phi3", "silu")])
def test_decoders_have_one_op_per_layer_between_their_linear_layers(name: str, activation: str, tmp_path: Path) -> None:
    graph = captured(tmp_path, name)
    gated = [node for node in ir.load(graph.path).graph if node.op_type == "Gated"]
    assert [node.attributes["activation"].as_string() for node in gated] == [activation] * 2
    assert not {"Sigmoid", "Gelu", "Tanh"} & set(ops(graph.path)) - ({"Tanh"} if name == "gemma2" else set())
    assert ops(lower(graph, tmp_path).path)["QuickGelu" if activation == "silu" else "Gelu"] == 2


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_the_lowered_op_computes_the_formula(activation: str, rng: np.random.Generator) -> None:
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[n,{INNER}] gate, float[n,{INNER}] up) => (float[n,{INNER}] y)
        {{ y = edgecompress.Gated<activation = "{activation}">(gate, up) }}
        """,
        {},
    )
    gate, up = (3 * rng.normal(size=(7, INNER)).astype(np.float32) for _ in range(2))
    expected = ACTIVATIONS[activation](torch.from_numpy(gate)).numpy() * up
    np.testing.assert_allclose(run(lower_model(model), gate=gate, up=up)[0], expected, rtol=1e-5, atol=1e-5)
