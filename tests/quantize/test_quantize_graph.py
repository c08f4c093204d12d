"""Quantized graphs, lowered and run, compared with the float32 graph and with their exact arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.graph.linears import find_embeddings, find_linears
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.activations import quantize_linears
from edgecompress.quantize.calibration import ActivationStatistics, collect_statistics
from edgecompress.quantize.numerics import fake_quantize_uint8, per_column_int8, range_to_uint8
from edgecompress.quantize.smoothing import smooth
from edgecompress.quantize.stage import Calibration, quantize
from edgecompress.quantize.weights import quantize_embeddings, quantize_weights
from edgecompress.targets import find_target
from edgecompress.types.graph import Graph
from edgecompress.types.limits import WeightLimits
from edgecompress.types.recipe import CalibrationRecipe, QuantizeRecipe, Recipe
from tests.graphs import graph_with_weights

K, N = 64, 48
BITS = 7 if find_target("local").u8s8_saturates else 8  # of weights, as an export for this machine has them
LIMITS = WeightLimits(integer_bits=BITS)


def two_linears(rng: np.random.Generator, outlier: float = 1.0) -> ir.Model:
    """x [B, T, K] -> two layers that read the same input, the second without a bias."""
    weights = {name: rng.normal(size=(K, N)).astype(np.float32) for name in ("w1", "w2")}
    for weight in weights.values():
        weight[3] /= outlier
    return graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,t,{K}] x, float[{K},{N}] w1, float[{N}] b1, float[{K},{N}] w2)
        => (float[b,t,{N}] y, float[b,t,{N}] z)
        {{ m = MatMul(x, w1)  y = Add(m, b1)  z = MatMul(x, w2) }}
        """,
        weights | {"b1": rng.normal(size=N).astype(np.float32)},
    )


def inputs(rng: np.random.Generator, outlier: float = 1.0, tokens: int = 33) -> np.ndarray:
    x = rng.normal(size=(2, tokens, K)).astype(np.float32)
    x[..., 3] *= outlier
    return x


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(lower_model(model.clone())).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def statistics_of(model: ir.Model, x: np.ndarray) -> dict[str, ActivationStatistics]:
    tensors = {linear.x.name or "": K for linear in find_linears(model)}
    return collect_statistics(lower_model(model.clone()), tensors, [{"x": x}])


def test_static_int8_matches_its_exact_arithmetic(rng: np.random.Generator) -> None:
    model, x = two_linears(rng), inputs(rng)
    weight = find_linears(model)[0].weight_array()
    bias = find_linears(model)[0].bias_array()
    seen = statistics_of(model, x)
    quantize_linears(
        model,
        find_linears(model),
        seen,
        static=CalibrationRecipe(method="minmax"),
        bias_correction=False,
        limits=LIMITS,
    )
    quantized, scale = per_column_int8(weight, BITS)
    expected = fake_quantize_uint8(x, *range_to_uint8(float(x.min()), float(x.max()))) @ (quantized * scale) + bias
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("static", [None, CalibrationRecipe(method="minmax")])
def test_int8_is_near_float32_and_quantizes_a_shared_input_once(
    rng: np.random.Generator, static: CalibrationRecipe | None
) -> None:
    model, x = two_linears(rng), inputs(rng)
    exact = run(model, x=x)
    quantize_linears(model, find_linears(model), statistics_of(model, x), static=static, limits=LIMITS)
    lowered = lower_model(model.clone())
    kinds = [node.op_type for node in lowered.graph]
    assert kinds.count("DynamicQuantizeLinear") + kinds.count("QuantizeLinear") == 1
    assert kinds.count("MatMulIntegerToFloat") == 2
    for a, b in zip(exact, run(model, x=x), strict=True):
        assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.02


def test_bias_correction_removes_the_mean_error(rng: np.random.Generator) -> None:
    x = inputs(rng, tokens=512) + 2.0  # a mean far from zero, where weight errors do not cancel
    exact = run(two_linears(np.random.default_rng(7)), x=x)[0]
    errors = []
    for correct in (False, True):
        model = two_linears(np.random.default_rng(7))
        seen = statistics_of(model, x)
        quantize_linears(
            model, find_linears(model), seen, static=None, limits=WeightLimits(integer_bits=4), bias_correction=correct
        )
        errors.append(np.abs((run(model, x=x)[0] - exact).mean(axis=(0, 1))).mean())
    assert errors[1] < errors[0] / 5


def test_smoothing_keeps_the_function_and_lowers_the_error(rng: np.random.Generator) -> None:
    x = inputs(rng, outlier=100.0)
    plain, smoothed = two_linears(rng, outlier=100.0), None
    exact = run(plain, x=x)
    smoothed = plain.clone()
    assert len(smooth(smoothed, find_linears(smoothed), statistics_of(smoothed, x), 0.8)) == 2
    for a, b in zip(exact, run(smoothed, x=x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    errors = []
    for model in (plain, smoothed):
        quantize_linears(model, find_linears(model), statistics_of(model, x), static=None)
        errors.append(np.linalg.norm(run(model, x=x)[0] - exact[0]))
    assert errors[1] < errors[0] / 3


def test_smoothing_is_skipped_where_it_does_not_pay(rng: np.random.Generator) -> None:
    model, x = two_linears(rng), inputs(rng)
    assert smooth(model, find_linears(model), statistics_of(model, x), 0.8) == []
    assert "Mul" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.015), (4, 0.15)])
def test_weight_only_blocks_run_as_packed(rng: np.random.Generator, bits: int, limit: float) -> None:
    model, x = two_linears(rng), inputs(rng)
    exact = run(model, x=x)
    assert quantize_weights(model, find_linears(model), bits=bits, block_size=32) == 2
    for a, b in zip(exact, run(model, x=x), strict=True):
        assert np.linalg.norm(a - b) / np.linalg.norm(a) < limit


def test_embedding_rows_are_within_half_a_step(rng: np.random.Generator) -> None:
    table = rng.normal(size=(2000, 64)).astype(np.float32)
    model = graph_with_weights(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[b,t] ids, float[2000,64] table) => (float[b,t,64] y) { y = Gather<axis=0>(table, ids) }
        """,
        {"table": table},
    )
    assert quantize_embeddings(model, find_embeddings(model)) == 1
    ids = rng.integers(0, 2000, (3, 7))
    got = run(model, ids=ids)[0]
    step = np.abs(table).max(1) / 127
    assert (np.abs(got - table[ids]) <= step[ids][..., None] / 2 + 1e-6).all()
    sizes = sum(v.const_value.nbytes for v in lower_model(model).graph.initializers.values() if v.const_value)
    assert sizes < table.nbytes / 3


def test_gptq_is_calibrated_by_the_stage(rng: np.random.Generator, tmp_path: Path) -> None:
    mixing = rng.normal(size=(8, K)).astype(np.float32)
    x, unseen = (rng.normal(size=(2, 2, 200, 8)).astype(np.float32) @ mixing) + rng.normal(size=(2, 2, 200, K)) * 0.1
    x, unseen = x.astype(np.float32), unseen.astype(np.float32)
    model = two_linears(rng)
    ir.save(model, tmp_path / "captured.onnx")
    captured = Graph(path=tmp_path / "captured.onnx", stage="captured")
    exact = run(model, x=unseen)
    errors = []
    for method in ("rtn", "gptq"):
        recipe = Recipe(quantize=QuantizeRecipe(method=method, block_size=32, accuracy_level=0))
        made = quantize(
            captured,
            "int4-weights",
            recipe,
            tmp_path,
            calibration=Calibration(batches=lambda: [{"x": x}], make_runnable=lower_model),
        )
        found = run(ir.load(made.path), x=unseen)
        errors.append(sum(float(np.linalg.norm(a - b)) for a, b in zip(exact, found, strict=True)))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("static", [False, True])
def test_a_layer_that_reads_another_directly(static: bool, rng: np.random.Generator) -> None:
    """Nothing stands between the two: the second's input is replaced before its own turn comes."""
    weights = {
        "w1": rng.normal(size=(K, N)).astype(np.float32) / 8,
        "w2": rng.normal(size=(N, K)).astype(np.float32) / 8,
    }
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,t,{K}] x, float[{K},{N}] w1, float[{N},{K}] w2) => (float[b,t,{K}] z)
        {{ y = MatMul(x, w1)  z = MatMul(y, w2) }}
        """,
        weights,
    )
    x = inputs(rng)
    tensors = {linear.x.name or "": linear.width for linear in find_linears(model)}
    statistics = collect_statistics(lower_model(model.clone()), tensors, [{"x": x}])
    static_recipe = CalibrationRecipe() if static else None
    quantize_linears(model, find_linears(model), statistics, static=static_recipe, limits=LIMITS)
    (found,) = run(model, x=x)
    exact = x @ weights["w1"] @ weights["w2"]
    assert float((found * exact).sum() / np.linalg.norm(found) / np.linalg.norm(exact)) > 0.999
