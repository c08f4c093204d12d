"""E4M3: rounding compared with a table, and a layer compared with float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.backends import find_backend
from edgecompress.errors import ChipError, RecipeError
from edgecompress.graph.linears import find_linears
from edgecompress.lower.qdq import lower_to_qdq
from edgecompress.quantize.calibration import collect_statistics
from edgecompress.quantize.float8 import quantize_linears_float8, scale_for, to_float8
from edgecompress.targets import computable, find_target, require_precision
from edgecompress.types.recipe import CalibrationRecipe
from tests.graphs import graph_with_weights
from tests.lower.test_qdq import run

K, N = 64, 48


def test_rounding_is_to_three_bits_and_never_to_nan() -> None:
    one = np.float32(1)
    values = np.array([1.0, 1.0625, 1.07, 17.0, 448.0, 1e6, -1e6, 2.0**-9, 2.0**-11, 0.0], dtype=np.float32)
    expected = [1.0, 1.0, 1.125, 16.0, 448.0, 448.0, -448.0, 2.0**-9, 0.0, 0.0]
    np.testing.assert_array_equal(to_float8(values, one).astype(np.float32), expected)


@pytest.mark.parametrize("reach", [0.0, 3e-9, 0.7, 448.0, 1e5])
def test_the_largest_value_is_the_largest_code(reach: float) -> None:
    scale = scale_for(reach)
    assert scale == np.float16(scale), "float16 holds it"
    assert scale > 0
    found = float(to_float8(np.array([reach], dtype=np.float32), scale).astype(np.float32)[0])
    assert found == (448.0 if reach >= 0.5 else pytest.approx(reach / float(scale), abs=2.0**-9))


def test_a_layer_is_q_and_dq_of_e4m3_on_both_sides(rng: np.random.Generator) -> None:
    weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((K, N), (N,)))
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[b,{K}] x, float[{K},{N}] w, float[{N}] bias) => (float[b,{N}] y)
        {{ m = MatMul(x, w)  y = Add(m, bias) }}
        """,
        {"w": weight, "bias": bias},
    )
    x = rng.normal(size=(200, K)).astype(np.float32)
    linears = find_linears(model)
    statistics = collect_statistics(model.clone(), {"x": K}, [{"x": x}])
    quantize_linears_float8(model, linears, statistics, CalibrationRecipe())
    assert lower_to_qdq(model) == 1
    assert [node.op_type for node in model.graph] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add",
    ]  # fmt: skip
    stored = [v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT8E4M3FN]
    assert sorted(t.nbytes for t in stored if t is not None) == [1, K * N]
    assert all(not node.attributes for node in model.graph if node.op_type == "DequantizeLinear"), "one scale a tensor"
    found, expected = run(model, x=x)[0], x @ weight + bias
    error = np.sqrt(np.square(found - expected).mean() / np.square(x @ weight).mean())
    assert 0.005 < error < 0.05, "three bits lose 2 to 4 %: less would say that nothing was rounded"
    assert np.abs((found - expected).mean(0)).max() < 0.15, "the bias takes up the mean error"


def test_chips_below_8_9_do_not_have_it() -> None:
    for name in ("rtx-4090", "rtx-5090", "l4", "h200", "jetson-thor"):
        assert "fp8" in computable(find_target(name))
    for name in ("rtx-3060", "a100", "jetson-agx-orin", "x86-64-avx512-vnni"):
        with pytest.raises(ChipError, match=f"'{name}' does not compute in float8, which fp8 needs") as caught:
            require_precision(find_target(name), "fp8")
        assert caught.value.exit_code == 3


def test_onnxruntime_is_refused() -> None:
    with pytest.raises(RecipeError, match="onnxruntime does not support fp8, only engines do"):
        find_backend("onnxruntime-cpu").plan.resolve("fp8", True)
    assert find_backend("tensorrt-rtx").plan.resolve("fp8", False) == "fp8"
    assert ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max == 448
