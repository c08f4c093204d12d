"""Experts, float and in blocks, compared with NumPy: with ONNX Runtime's kernels and as plain ops."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.backends.contents import expert_notes, weight_layers
from edgecompress.graph.blocks import BlockFormat
from edgecompress.lower.experts import REASON, never_negative, why_not
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.experts import find_experts, quantize_experts, routers
from edgecompress.types.recipe import QuantizeRecipe
from tests.graphs import graph_with_weights
from tests.quantize.test_quantize_graph import run

N, E, K, H, INNER = 9, 5, 3, 32, 48
SILU = 'activation = "swiglu", alpha = 1.0, beta = 0.0'
CLAMPED = 'activation = "swiglu", alpha = 1.702, beta = 1.0, limit = 0.75'
GATES = {"silu": SILU, "clamped": CLAMPED, **{name: f'activation = "{name}"' for name in ("gelu", "gelu_tanh", "relu")}}
ROUTING = {
    "softmax, then the best": "p = Softmax<axis = -1>(l)  w, c = TopK<axis = -1>(p, k)",
    "the best, then softmax": "b, c = TopK<axis = -1>(l, k)  w = Softmax<axis = -1>(b)",
    "sigmoid, scaled": "p = Sigmoid(l)  b, c = TopK<axis = -1>(p, k)  w = Mul(b, scale)",
    "signed": "w, c = TopK<axis = -1>(l, k)",
}


def mixture(rng: np.random.Generator, gate: str, routing: str, *, bias: bool = False, inner: int = INNER) -> ir.Model:
    shapes = {"router": (H, E), "gate_up": (E, 2 * inner, H), "down": (E, H, inner)}
    shapes |= {"gate_up_bias": (E, 2 * inner), "down_bias": (E, H)} if bias else {}
    weights = {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    constants = {"k": np.array([K]), "scale": np.array(2.5, dtype=np.float32)}
    declared = [f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items()]
    inputs = ", ".join(["x", "c", "w", *list(shapes)[1:]])
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[n,{H}] x, {", ".join(declared)}, int64[1] k, float scale) => (float[n,{H}] y)
        {{ l = MatMul(x, router)  {ROUTING[routing]}
           y = edgecompress.Experts<k = {K}, {GATES[gate]}>({inputs}) }}
        """,
        weights | constants,
    )
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.name in weights:
            value.shape = ir.Shape(shapes[value.name])
    return model


def activated(gate: str, g: np.ndarray, u: np.ndarray) -> np.ndarray:
    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    if gate == "clamped":
        g, u = np.minimum(g, 0.75), np.clip(u, -0.75, 0.75)
        return g * sigmoid(1.702 * g) * (u + 1)
    if gate == "gelu_tanh":
        return 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) * u
    activations = {
        "silu": lambda v: v * sigmoid(v),
        "gelu": lambda v: 0.5 * v * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
        "relu": lambda v: np.maximum(v, 0),
    }
    return activations[gate](g) * u


def by_hand(weights: dict[str, np.ndarray], x: np.ndarray, gate: str, routing: str) -> np.ndarray:
    """Token by token and expert by expert, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    y = np.zeros(x.shape)
    for token, row in enumerate(x.astype(np.float64)):
        logits = row @ w["router"]
        softmax = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-logits)[:K]
        share = {
            "softmax, then the best": softmax[chosen],
            "the best, then softmax": softmax[chosen] / softmax[chosen].sum(),
            "sigmoid, scaled": 2.5 / (1 + np.exp(-logits[chosen])),
            "signed": logits[chosen],
        }[routing]
        for expert, weight in zip(chosen, share, strict=True):
            inner = w["gate_up"][expert] @ row + (w["gate_up_bias"][expert] if "gate_up_bias" in w else 0)
            outer = w["down"][expert] @ activated(gate, inner[0::2], inner[1::2])
            y[token] += weight * (outer + (w["down_bias"][expert] if "down_bias" in w else 0))
    return y


def arrays_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items() if v.const_value is not None}


def kinds(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


@pytest.mark.parametrize("tokens", [1, N])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("routing", list(ROUTING)[:3])
@pytest.mark.parametrize("gate", ["silu", "clamped"])
def test_float_experts_are_one_op(rng: np.random.Generator, gate: str, routing: str, bias: bool, tokens: int) -> None:
    model = mixture(rng, gate, routing, bias=bias)
    weights, x = arrays_of(model), rng.normal(size=(tokens, H)).astype(np.float32)
    lowered = lower_model(model)
    assert "MoE" in kinds(lowered)
    assert "Gather" not in kinds(lowered)
    assert expert_notes(lowered) == ()
    np.testing.assert_allclose(run(lowered, x=x)[0], by_hand(weights, x, gate, routing), rtol=1e-5, atol=2e-5)


def test_very_different_weights_keep_their_share(rng: np.random.Generator) -> None:
    """The logarithms span float32's range: an expert of weight 1e-12 adds almost nothing, and no NaN."""
    model = mixture(rng, "silu", "softmax, then the best")
    router = model.graph.initializers["router"]
    assert router.const_value is not None
    router.const_value = ir.tensor(router.const_value.numpy() * 60, name="router")
    weights, x = arrays_of(model), rng.normal(size=(N, H)).astype(np.float32)
    expected = by_hand(weights, x, "silu", "softmax, then the best")
    np.testing.assert_allclose(run(lower_model(model), x=x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("gate", "routing"), [*((g, "the best, then softmax") for g in GATES), ("silu", "signed")])
def test_unsupported_experts_become_plain_ops(
    rng: np.random.Generator, gate: str, routing: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixture(rng, gate, routing, bias=bias)
    if gate in ("silu", "clamped") and routing != "signed":  # the kernels take these: written out all the same
        monkeypatch.setattr("edgecompress.lower.experts.why_not", lambda _: "for the test")
    else:
        assert why_not(find_experts(model)[0]) is not None
    weights, x = arrays_of(model), rng.normal(size=(N, H)).astype(np.float32)
    lowered = lower_model(model)
    assert not {"MoE", "QMoE"} & kinds(lowered)
    (note,) = expert_notes(lowered)
    assert note.endswith(lowered.metadata_props[REASON])
    np.testing.assert_allclose(run(lowered, x=x)[0], by_hand(weights, x, gate, routing), rtol=1e-5, atol=2e-5)


def rounded(weights: dict[str, np.ndarray], recipe: QuantizeRecipe, bits: int, block: int) -> dict[str, np.ndarray]:
    form = BlockFormat(bits=bits, block_size=block, symmetric=recipe.symmetric)
    changed = dict(weights)
    for name in ("gate_up", "down"):
        flat = weights[name].reshape(-1, weights[name].shape[2])
        changed[name] = quantize_blocks(flat.T, form, recipe.method).dequantize().T.reshape(weights[name].shape)
    return changed


@pytest.mark.parametrize("tokens", [1, N])
@pytest.mark.parametrize("gate", ["silu", "clamped", "gelu"])
@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_experts_in_blocks(
    rng: np.random.Generator, bits: int, symmetric: bool, method: str, gate: str, tokens: int
) -> None:
    """The widths are 32 and 48, so a block of 128 becomes 16."""
    model = mixture(rng, gate, "the best, then softmax", bias=True)
    recipe = QuantizeRecipe(method=method, symmetric=symmetric, accuracy_level=0, block_size=128)
    weights, x = arrays_of(model), rng.normal(size=(tokens, H)).astype(np.float32)
    assert quantize_experts(model, recipe, bits=bits) == 1
    assert not {"gate_up", "down"} & set(model.graph.initializers)
    lowered = lower_model(model)
    assert ("QMoE" in kinds(lowered)) == (gate != "gelu")
    expected = by_hand(rounded(weights, recipe, bits, 16), x, gate, "the best, then softmax")
    # At 8 bits the kernel rounds its inputs too, whatever the accuracy level.
    error = 0.02 if bits == 8 and gate != "gelu" else 1e-5
    assert np.linalg.norm(run(lowered, x=x)[0] - expected) <= error * np.linalg.norm(expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_report_lists_experts_with_their_bits_and_bytes(rng: np.random.Generator, bits: int) -> None:
    model = mixture(rng, "silu", "the best, then softmax")
    quantize_experts(model, QuantizeRecipe(method="rtn", block_size=16), bits=bits)
    layers = {layer.shape: layer for layer in weight_layers(lower_model(model)) if layer.op == "QMoE"}
    packed = layers[E, 2 * INNER, H * bits // 8]
    assert (packed.name, packed.precision, packed.bytes) == ("gate_up", f"int{bits}", E * 2 * INNER * H * bits // 8)
    assert layers[E, H, INNER * bits // 8].name == "down"
    assert layers[E, 2 * INNER, H // 16].bytes == 4 * E * 2 * INNER * H // 16  # scales


def test_experts_that_no_block_divides_stay_float_and_are_reported(rng: np.random.Generator) -> None:
    model = mixture(rng, "silu", "the best, then softmax", inner=24)
    weights, x = arrays_of(model), rng.normal(size=(N, H)).astype(np.float32)
    assert quantize_experts(model, QuantizeRecipe(method="rtn"), bits=4) == 0
    lowered = lower_model(model)
    lowered.metadata_props["edgecompress.precision"] = "int4-weights"  # as compile says it
    (note,) = expert_notes(lowered)
    assert "stay in float32: no block" in note
    expected = by_hand(weights, x, "silu", "the best, then softmax")
    np.testing.assert_allclose(run(lowered, x=x)[0], expected, rtol=1e-5, atol=2e-5)


def test_the_router_is_found_and_nothing_else(rng: np.random.Generator) -> None:
    text = f"""
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[n,{H}] a, float[{H},{H}] before, float[{H},{E}] router, float[{E},{2 * INNER},{H}] gate_up,
           float[{E},{H},{INNER}] down, float[{H},{H}] behind, int64[1] k) => (float[n,{H}] z)
        {{ x = MatMul(a, before)  l = MatMul(x, router)  p = Softmax(l)  w, c = TopK(p, k)
           y = edgecompress.Experts<k = {K}, {SILU}>(x, c, w, gate_up, down)  z = MatMul(y, behind) }}
    """
    shapes = {"before": (H, H), "router": (H, E), "gate_up": (E, 2 * INNER, H), "down": (E, H, INNER), "behind": (H, H)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    assert routers(graph_with_weights(text, arrays | {"k": np.array([K])})) == {"MatMul_1"}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("p = Softmax(v)", True),
        ("s = Sigmoid(v)  p = Add(s, tiny)", True),
        ("s = Sigmoid(v)  t = ReduceSum(s)  p = Div(s, t)", True),
        ("s = Sigmoid(v)  p = Sub(s, tiny)", False),
        ("s = Sigmoid(v)  p = Mul(s, below)", False),
        ("p = Max(v, tiny)", True),
        ("p = Identity(v)", False),
        ("p = Tanh(v)", False),
    ],
)
def test_weights_never_below_zero(made: str, expected: bool) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[n,4] v, float tiny, float below) => (float[n,4] p) {{ {made} }}"""
    constants = {"tiny": np.array(1e-20, dtype=np.float32), "below": np.array(-1.0, dtype=np.float32)}
    assert never_negative(graph_with_weights(text, constants).graph.outputs[0]) is expected
