"""Types of a strongly typed graph: float16 where it is safe, float32 where it would overflow or lose too much."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.graph.linears import find_linears
from edgecompress.lower.half_rounding import round_explicitly
from edgecompress.lower.standard import OPSET, computed_in_half, lower_model
from edgecompress.quantize.activations import quantize_linears
from edgecompress.quantize.calibration import collect_statistics
from edgecompress.quantize.peaks import too_large_for_half
from edgecompress.quantize.weights import quantize_weights
from edgecompress.types.recipe import CalibrationRecipe
from tests.graphs import graph_with_weights
from tests.limits import ENGINE

K = 64
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def block(rng: np.random.Generator, size: float = 1.0) -> ir.Model:
    """Two layers with a gate between them, a residual addition and a norm; ``size`` scales the first layer's output."""
    w1 = rng.normal(size=(K, K)).astype(np.float32) * np.float32(size)
    w2 = rng.normal(size=(K, K)).astype(np.float32) / np.float32(size)
    ones, zeros = np.ones(K, dtype=np.float32), np.zeros(K, dtype=np.float32)
    return graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,t,{K}] x, float[{K},{K}] w1, float[{K}] b1, float[{K},{K}] w2, float[{K}] g, float[{K}] b)
        => (float[b,t,{K}] y)
        <float[b,t,{K}] m1, float[b,t,{K}] a1, float[b,t,{K}] r, float[b,t,{K}] m2, float[b,t,{K}] s>
        {{ m1 = MatMul(x, w1)  a1 = Add(m1, b1)  r = Relu(a1)  m2 = MatMul(r, w2)  s = Add(m2, x)
           y = LayerNormalization <axis = -1> (s, g, b) }}
        """,
        {"w1": w1, "b1": zeros, "w2": w2, "g": ones, "b": zeros},
    )


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """Run the graph with real float16 rounding."""
    model = model.clone()
    round_explicitly(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As verification has it: ONNX Runtime's own fusions would round the inputs of products too.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model).SerializeToString()
    output: np.ndarray = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return output


def types_of(model: ir.Model) -> dict[str, tuple[ir.DataType | None, ...]]:
    """Node name -> types of its inputs and its output."""
    return {
        node.name or "": (*(v.dtype for v in node.inputs if v is not None), node.outputs[0].dtype)
        for node in model.graph
    }


def test_products_are_half_and_norms_are_not(rng: np.random.Generator) -> None:
    model = lower_model(block(rng))
    types = types_of(model)
    assert types["MatMul_0"] == (HALF, HALF, HALF)
    assert types["Add_1"] == (HALF, HALF, HALF)
    assert types["Relu_2"] == (HALF, HALF)
    assert types["LayerNormalization_5"] == (FLOAT, FLOAT, FLOAT, FLOAT)
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [FLOAT, FLOAT]
    # The input is in float32 and the product in float16: together they are added in float32.
    assert types["Add_4"] == (FLOAT, FLOAT, FLOAT)


def test_it_is_the_same_function(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 9, K)).astype(np.float32)
    expected = run(block(np.random.default_rng(1)), x)
    got = run(lower_model(block(np.random.default_rng(1))), x)
    assert got.dtype == np.float32
    # Each of two products rounds its inputs and output to 11 bits.
    assert np.abs(got - expected).max() <= 8 * 2**-11 * np.abs(expected).max()


def test_values_beyond_half_stay_float(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 9, K)).astype(np.float32)
    floats = block(np.random.default_rng(1), size=1e4)
    expected = run(floats, x)
    blind = lower_model(block(np.random.default_rng(1), size=1e4))
    assert not np.isfinite(run(blind, x)).all(), "the case must overflow float16, or it shows nothing"
    names = computed_in_half(floats)
    assert names == ["m1", "a1", "r", "m2", "s"]
    wide = too_large_for_half(floats, names, [{"x": x}])
    assert wide == ("a1", "m1", "r")
    model = lower_model(block(np.random.default_rng(1), size=1e4), wide)
    types = types_of(model)
    assert types["MatMul_0"] == types["MatMul_3"] == (FLOAT, FLOAT, FLOAT)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_values_beyond_half_stay_float_after_quantized_weights(bits: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 9, K)).astype(np.float32)
    floats = block(np.random.default_rng(1), size=1e4)
    expected = run(floats, x)
    wide = too_large_for_half(floats, computed_in_half(floats), [{"x": x}])

    def lowered(wide: tuple[str, ...]) -> ir.Model:
        model = block(np.random.default_rng(1), size=1e4)
        if bits == 4:
            quantize_weights(model, find_linears(model), bits=4, block_size=32, limits=ENGINE)
        else:
            statistics = collect_statistics(model, {"x": K, "r": K}, [{"x": x}])
            quantize_linears(model, find_linears(model), statistics, static=CalibrationRecipe(), limits=ENGINE)
        return lower_model(model, wide)

    assert not np.isfinite(run(lowered(()), x)).all()
    got = run(lowered(wide), x)
    assert np.isfinite(got).all()
    assert (got * expected).sum() >= 0.98 * np.linalg.norm(got) * np.linalg.norm(expected)


def test_a_value_is_cast_once_for_all_its_readers() -> None:
    model = lower_model(
        graph_with_weights(
            f"""
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[b,{K}] x, float[{K},{K}] w1, float[{K},{K}] w2) => (float[b,{K}] y, float[b,{K}] z)
            {{ y = MatMul(x, w1)  z = MatMul(x, w2) }}
            """,
            {"w1": np.eye(K, dtype=np.float32), "w2": 2 * np.eye(K, dtype=np.float32)},
        )
    )
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert sum(node.inputs[0] is model.graph.inputs[0] for node in casts) == 1
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert model.opset_imports[""] == OPSET


@pytest.mark.parametrize(("op", "kind"), [("Softmax <axis = -1>", FLOAT), ("ReduceMean", FLOAT), ("Gelu", HALF)])
def test_sums_and_exponentials_compute_in_float32(op: str, kind: ir.DataType) -> None:
    model = lower_model(
        graph_with_weights(
            f"""
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[b,{K}] x, float[{K},{K}] w) => (float[b,c] y) {{ m = MatMul(x, w)  y = {op} (m) }}
            """,
            {"w": np.eye(K, dtype=np.float32)},
        )
    )
    node = next(node for node in model.graph if node.op_type == op.split()[0])
    assert node.inputs[0] is not None
    assert node.inputs[0].dtype == kind


def test_constants_beyond_half_become_its_largest_number(rng: np.random.Generator) -> None:
    bias = np.full(K, -3e38, dtype=np.float32)
    model = lower_model(
        graph_with_weights(
            f"""
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[b,{K}] x, float[{K},{K}] w, float[{K}] bias) => (float[b,{K}] y)
            {{ m = MatMul(x, w)  y = Add(m, bias) }}
            """,
            {"w": np.eye(K, dtype=np.float32), "bias": bias},
        )
    )
    got = run(model, np.zeros((1, K), dtype=np.float32))
    assert np.array_equal(got, np.full((1, K), np.finfo(np.float16).min, dtype=np.float32))


def test_every_half_is_rounded_once(rng: np.random.Generator) -> None:
    model = lower_model(block(rng))
    halves = sum(value.dtype == HALF for node in model.graph for value in node.outputs)
    assert halves > 0
    assert round_explicitly(model) == halves
    for node in model.graph:
        if node.op_type != "Cast":
            assert all(value is None or value.dtype != HALF for value in (*node.inputs, *node.outputs))
    first = next(node for node in model.graph if node.op_type == "MatMul").outputs[0]
    readers = [reader.op_type for reader, _ in first.uses()]
    assert readers == ["Cast"], "nothing reads a value before it is rounded"
