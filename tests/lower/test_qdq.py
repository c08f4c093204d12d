"""The places of Q and DQ, template by template, and the results of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.errors import RecipeError
from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import find_embeddings, find_linears, find_residuals
from edgecompress.lower.qdq import lower_to_qdq
from edgecompress.lower.standard import OPSET
from edgecompress.quantize.activations import quantize_linears
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.calibration import ActivationStatistics, collect_statistics
from edgecompress.quantize.numerics import per_column_int8, per_row_int8, range_to_int8
from edgecompress.quantize.residuals import quantize_residuals
from edgecompress.quantize.weights import quantize_embeddings, quantize_weights
from edgecompress.types.recipe import CalibrationRecipe
from tests.graphs import graph_with_weights
from tests.limits import ENGINE

K, N, TOKENS = 64, 48, 33
STATIC = CalibrationRecipe()


def two_readers(rng: np.random.Generator) -> ir.Model:
    """x [B, T, K] -> two layers that read it, the second without a bias."""
    weights = {name: rng.normal(size=(K, N)).astype(np.float32) for name in ("w1", "w2")}
    return graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        g (float[b,t,{K}] x, float[{K},{N}] w1, float[{N}] b1, float[{K},{N}] w2)
        => (float[b,t,{N}] y, float[b,t,{N}] z)
        {{ m = MatMul(x, w1)  y = Add(m, b1)  z = MatMul(x, w2) }}
        """,
        weights | {"b1": rng.normal(size=N).astype(np.float32)},
    )


def residual_block(rng: np.random.Generator, outlier: float) -> ir.Model:
    """norm -> layer -> residual addition -> norm, as in an encoder, with an outlier channel in the addition."""
    weight = rng.normal(size=(K, K)).astype(np.float32) * K**-0.5
    weight[:, 5] *= outlier
    return graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        g (float[b,t,{K}] x, float[{K},{K}] w, float[{K}] bias, float[{K}] g1, float[{K}] b1)
        => (float[b,t,{K}] y)
        {{ n = LayerNormalization <axis = -1> (x, g1, b1)
           m = MatMul(n, w)  l = Add(m, bias)  r = Add(l, n)
           y = LayerNormalization <axis = -1> (r, g1, b1) }}
        """,
        {
            "w": weight,
            "bias": np.zeros(K, dtype=np.float32),
            "g1": np.ones(K, dtype=np.float32),
            "b1": np.zeros(K, dtype=np.float32),
        },
    )


def statistics_of(model: ir.Model, names: list[str], x: np.ndarray) -> dict[str, ActivationStatistics]:
    return collect_statistics(model.clone(), dict.fromkeys(names, K), [{"x": x}])


def quantized_residuals(
    rng: np.random.Generator, outlier: float, x: np.ndarray, *, residuals: bool = True
) -> tuple[ir.Model, int]:
    model = residual_block(rng, outlier)
    statistics = statistics_of(model, ["n", "l"], x)
    linears = find_linears(model)
    additions = find_residuals(linears)
    assert [node.name for node in additions] == ["Add_3"]
    quantize_linears(model, linears, statistics, static=STATIC, limits=ENGINE)
    balanced = quantize_residuals(model, additions, statistics, STATIC) if residuals else 0
    lower_to_qdq(model)
    return model, balanced


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As verification has it: ONNX Runtime's own fusions would round the inputs of products too.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def behind_dq(value: ir.Value | None) -> ir.Node:
    """The Q of a value that has passed Q, DQ and, at most, a product with a constant."""
    assert value is not None
    node = value.producer()
    if node is not None and node.op_type == "Mul":
        assert node.inputs[1] is not None
        assert node.inputs[1].const_value is not None
        node = node.inputs[0].producer()  # type: ignore[union-attr]
    assert node is not None
    assert node.op_type == "DequantizeLinear"
    quantize = node.inputs[0].producer()  # type: ignore[union-attr]
    assert quantize is not None
    assert quantize.op_type == "QuantizeLinear"
    assert node.inputs[1] is quantize.inputs[1]
    return quantize


def test_a_layer_has_8_bit_inputs_and_weights(rng: np.random.Generator) -> None:
    model = two_readers(rng)
    x = rng.normal(size=(2, TOKENS, K)).astype(np.float32)
    weight, bias = (model.graph.initializers[name].const_value.numpy() for name in ("w1", "b1"))  # type: ignore[union-attr]
    quantize_linears(
        model, find_linears(model), statistics_of(model, ["x"], x), static=STATIC, limits=ENGINE, bias_correction=False
    )
    assert lower_to_qdq(model) == 2
    assert kinds(model).count("QuantizeLinear") == 1, "all readers of an input share its Q"
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert len(products) == 2
    for node in products:
        quantize = behind_dq(node.inputs[0])
        zero = quantize.inputs[2].const_value  # type: ignore[union-attr]
        assert zero is not None
        assert (zero.dtype, zero.numpy().item()) == (ir.DataType.INT8, 0)
        columns = node.inputs[1].producer()  # type: ignore[union-attr]
        assert columns is not None
        assert (columns.op_type, columns.attributes["axis"].as_int()) == ("DequantizeLinear", 1)
        stored, scale = columns.inputs[0].const_value, columns.inputs[1].const_value  # type: ignore[union-attr]
        assert stored is not None
        assert scale is not None
        assert (stored.dtype, tuple(scale.shape)) == (ir.DataType.INT8, (N,))
        assert np.array_equal(scale.numpy().astype(np.float16).astype(np.float32), scale.numpy())
        behind = [reader.op_type for reader, _ in node.outputs[0].uses()]
        assert behind == ["Add"], "a product's own output stays a float"
    seen = statistics_of(two_readers(np.random.default_rng(0)), ["x"], x)["x"]
    step = range_to_int8(seen.low, seen.high)
    codes, scales = per_column_int8(weight, half_scales=True)
    rounded = np.clip(np.rint(x / step), -128, 127)
    expected = rounded.astype(np.int64) @ codes.astype(np.int64) * (step * scales) + bias
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-4, atol=1e-4)


def test_residual_inputs_are_rounded_and_norms_are_not(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, TOKENS, K)).astype(np.float32)
    model, _ = quantized_residuals(rng, 1.0, x)
    addition = next(node for node in model.graph if node.name == "Add_3")
    layer, stream = (behind_dq(value) for value in addition.inputs)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert stream is behind_dq(product.inputs[0]), "layer and addition read the same 8 bits"
    assert layer is not stream
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            before = node.inputs[0].producer()  # type: ignore[union-attr]
            assert before is None or before.op_type == "Add", "no Q or DQ in front of a norm"
    assert [reader.op_type for reader, _ in addition.outputs[0].uses()] == ["LayerNormalization"]


def test_a_residual_input_with_an_outlier_is_balanced(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 4 * TOKENS, K)).astype(np.float32)
    expected = run(residual_block(np.random.default_rng(1), 100.0), x=x)[0]
    model, balanced = quantized_residuals(np.random.default_rng(1), 100.0, x)
    floats, _ = quantized_residuals(np.random.default_rng(1), 100.0, x, residuals=False)
    assert balanced == 1
    assert quantized_residuals(np.random.default_rng(1), 1.0, x)[1] == 0
    alone = np.abs(run(floats, x=x)[0] - expected).mean()
    both = np.abs(run(model, x=x)[0] - expected).mean()
    assert both <= 2 * alone


@pytest.mark.parametrize(("bits", "width", "block"), [(4, 256, 128), (4, 64, 32), (4, 96, 32)])
def test_a_weight_in_blocks_has_a_dq(rng: np.random.Generator, bits: int, width: int, block: int) -> None:
    weight = rng.normal(size=(width, N)).astype(np.float32)
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        g (float[b,{width}] x, float[{width},{N}] w, float[{N}] bias) => (float[b,{N}] y)
        {{ m = MatMul(x, w)  y = Add(m, bias) }}
        """,
        {"w": weight, "bias": np.arange(N, dtype=np.float32)},
    )
    quantize_weights(model, find_linears(model), bits=bits, block_size=128, limits=ENGINE)
    assert lower_to_qdq(model) == 1
    assert kinds(model) == ["DequantizeLinear", "MatMul", "Add"]
    dequantize = model.graph[0]
    stored, scale = (value.const_value for value in dequantize.inputs[:2])  # type: ignore[union-attr]
    assert stored is not None
    assert scale is not None
    assert stored.dtype == (ir.DataType.INT4 if bits == 4 else ir.DataType.INT8)
    assert stored.nbytes == width * N * bits // 8
    assert (dequantize.attributes["axis"].as_int(), dequantize.attributes["block_size"].as_int()) == (0, block)
    assert tuple(scale.shape) == (width // block, N)
    assert (scale.numpy() > 0).all()
    blocks = quantize_blocks(weight, BlockFormat(bits=bits, block_size=block, positive_scales=True))
    x = rng.normal(size=(5, width)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], x @ blocks.dequantize() + np.arange(N), rtol=1e-4, atol=1e-4)


def test_8_bit_weights_have_one_scale_per_column(rng: np.random.Generator) -> None:
    """With blocks, the engine builder would write the weight out in float16 before each product."""
    weight = rng.normal(size=(K, N)).astype(np.float32)
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        g (float[b,{K}] x, float[{K},{N}] w) => (float[b,{N}] y) {{ y = MatMul(x, w) }}
        """,
        {"w": weight},
    )
    quantize_weights(model, find_linears(model), bits=8, block_size=32, limits=ENGINE)
    assert lower_to_qdq(model) == 1
    dequantize = model.graph[0]
    stored, scale = (value.const_value for value in dequantize.inputs[:2])  # type: ignore[union-attr]
    assert stored is not None
    assert scale is not None
    assert (stored.dtype, stored.nbytes) == (ir.DataType.INT8, K * N)
    assert (dequantize.attributes["axis"].as_int(), tuple(scale.shape)) == (1, (N,))
    assert "block_size" not in dequantize.attributes
    x = rng.normal(size=(5, K)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], x @ weight, atol=0.2)
    half_step = scale.numpy() / 2
    assert (np.abs(stored.numpy().astype(np.float32) * scale.numpy() - weight) <= 1.01 * half_step).all()


def test_zero_points_of_weights_are_refused(rng: np.random.Generator) -> None:
    model = two_readers(rng)
    quantize_weights(model, find_linears(model), bits=4, block_size=32, symmetric=False)
    with pytest.raises(RecipeError, match="Q/DQ supports symmetric weights only"):
        lower_to_qdq(model)


def test_activations_without_a_calibrated_scale_are_refused(rng: np.random.Generator) -> None:
    model = two_readers(rng)
    x = rng.normal(size=(2, TOKENS, K)).astype(np.float32)
    quantize_linears(model, find_linears(model), statistics_of(model, ["x"], x), static=None)
    with pytest.raises(RecipeError, match="with calibrated scales"):
        lower_to_qdq(model)


def test_a_table_has_a_dq_before_the_lookup(rng: np.random.Generator) -> None:
    table = rng.normal(size=(2000, K)).astype(np.float32) * rng.uniform(0.1, 3, size=(2000, 1)).astype(np.float32)
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        g (int64[b,t] ids, float[2000,{K}] table) => (float[b,t,{K}] y) {{ y = Gather(table, ids) }}
        """,
        {"table": table},
    )
    quantize_embeddings(model, find_embeddings(model), limits=ENGINE)
    assert lower_to_qdq(model) == 1
    assert kinds(model) == ["DequantizeLinear", "Gather"]
    assert model.graph[0].attributes["axis"].as_int() == 0
    codes, scales = per_row_int8(table, half_scales=True)
    ids = rng.integers(0, 2000, size=(2, 7))
    assert np.array_equal(run(model, ids=ids)[0], (codes * scales)[ids])
