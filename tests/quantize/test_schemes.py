"""The table of schemes, the needs of a precision, and limits on weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.errors import CalibrationError
from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import find_linears
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.head_and_tables import quantize_every_weight
from edgecompress.quantize.schemes import SCHEMES
from edgecompress.quantize.stage import Calibration, calibrate, quantize
from edgecompress.quantize.weights import fitting_block
from edgecompress.types.graph import Graph
from edgecompress.types.limits import DEFAULT_LIMITS, WeightLimits
from edgecompress.types.precision import FP32, INT4_WEIGHTS, PRECISIONS
from edgecompress.types.recipe import QuantizeRecipe, Recipe
from tests.limits import ENGINE
from tests.quantize.test_quantize_decoder import decoder
from tests.quantize.test_quantize_graph import inputs, two_linears


def written(model: ir.Model, folder: Path) -> Graph:
    ir.save(model, folder / "captured.onnx")
    return Graph(path=folder / "captured.onnx", stage="captured")


def test_every_precision_has_a_scheme_or_stays_as_captured() -> None:
    assert set(SCHEMES) == set(PRECISIONS)
    floats = {name for name, precision in PRECISIONS.items() if precision.weights in ("float32", "float16")}
    assert {name for name, scheme in SCHEMES.items() if scheme is None} == floats


@pytest.mark.parametrize("precision", SCHEMES)
def test_every_scheme_quantizes_every_layer(precision: str, rng: np.random.Generator, tmp_path: Path) -> None:
    texts = [{"ids": rng.integers(0, 1200, (1, 9))} for _ in range(2)]
    graph = written(decoder(rng), tmp_path)
    recipe = Recipe(quantize=QuantizeRecipe(block_size=32))
    calibration = Calibration(
        statistics=calibrate(graph, recipe, lambda: texts, lower_model, tmp_path),
        probes=lambda: texts,
        make_runnable=lower_model,
    )
    made = quantize(graph, precision, recipe, tmp_path, calibration=calibration)
    assert (made.stage, made.precision) == ("quantized", precision)
    left = len(find_linears(ir.load(made.path)))
    assert left == (3 if SCHEMES[precision] is None else 0)
    assert len(find_linears(ir.load(graph.path))) == 3, "the graph that was given stays as it is"


@pytest.mark.parametrize("precision", [name for name, scheme in SCHEMES.items() if scheme is not None])
def test_only_selected_layers_are_quantized(precision: str, rng: np.random.Generator, tmp_path: Path) -> None:
    texts = [{"ids": rng.integers(0, 1200, (1, 9))} for _ in range(2)]
    graph = written(decoder(rng), tmp_path)
    recipe = Recipe(quantize=QuantizeRecipe(block_size=32))
    calibration = Calibration(
        statistics=calibrate(graph, recipe, lambda: texts, lower_model, tmp_path),
        probes=lambda: texts,
        make_runnable=lower_model,
    )
    made = quantize(
        graph, precision, recipe, tmp_path, calibration=calibration, only=lambda linear: linear.name == "MatMul_1"
    )
    assert [linear.name for linear in find_linears(ir.load(made.path))] == ["MatMul_4", "MatMul_6"]


def test_gptq_without_text_says_so(rng: np.random.Generator, tmp_path: Path) -> None:
    graph = written(two_linears(rng), tmp_path)
    recipe = Recipe(quantize=QuantizeRecipe(method="gptq", block_size=32))
    with pytest.raises(CalibrationError, match="no calibration text"):
        quantize(graph, INT4_WEIGHTS, recipe, tmp_path, calibration=Calibration(make_runnable=lower_model))


def test_without_a_scheme_nothing_is_written(rng: np.random.Generator, tmp_path: Path) -> None:
    graph = written(two_linears(rng), tmp_path)
    assert quantize(graph, FP32, Recipe(), tmp_path).path == graph.path
    assert [path.name for path in tmp_path.iterdir()] == ["captured.onnx"]


def test_default_limits_change_nothing() -> None:
    assert WeightLimits() == DEFAULT_LIMITS
    assert (
        WeightLimits(
            integer_bits=8,
            signed_activations=False,
            residuals=False,
            half_scales=False,
            positive_scales=False,
            least_blocks=1,
            whole_columns=False,
            table_rows=False,
        )
        == DEFAULT_LIMITS
    )


@pytest.mark.parametrize(
    ("bits", "width", "limits", "block"),
    [
        (4, 100, WeightLimits(), 128),
        (8, 100, WeightLimits(), 128),
        (8, 100, WeightLimits(whole_columns=True), 100),
        (4, 128, WeightLimits(whole_columns=True), 128),
        (4, 512, WeightLimits(least_blocks=2), 128),
        (4, 128, WeightLimits(least_blocks=2), 64),
        (4, 96, WeightLimits(least_blocks=2), 32),
        (4, 512, WeightLimits(least_blocks=8), 64),
    ],
)
def test_the_block_size_within_the_limits(bits: int, width: int, limits: WeightLimits, block: int) -> None:
    assert fitting_block(width, BlockFormat(bits=bits, block_size=128), limits) == block


def test_signed_activations_are_symmetric(rng: np.random.Generator, tmp_path: Path) -> None:
    x = inputs(rng) + 3.0
    graph = written(two_linears(rng), tmp_path)
    calibrated = calibrate(graph, Recipe(), lambda: [{"x": x}], lower_model, tmp_path)
    for limits, dtype in (
        (DEFAULT_LIMITS, ir.DataType.UINT8),
        (WeightLimits(signed_activations=True), ir.DataType.INT8),
    ):
        made = quantize(
            graph, "int8-static", Recipe(), tmp_path, calibration=Calibration(statistics=calibrated), limits=limits
        )
        nodes = [node for node in ir.load(made.path).graph if node.op_type == "QuantizedLinear"]
        assert {node.inputs[5].dtype for node in nodes if node.inputs[5] is not None} == {dtype}


def test_a_graph_with_a_head_keeps_to_the_limits(rng: np.random.Generator) -> None:
    model = decoder(rng, tied=True)
    made = quantize_every_weight(model, find_linears(model), QuantizeRecipe(head_bits=8), bits=4, limits=ENGINE)
    assert not made.tied
    ops = [node.op_type for node in model.graph]
    assert (ops.count("QuantizedEmbedding"), ops.count("BlockLinear")) == (1, 3)
    for node in (node for node in model.graph if node.op_type == "BlockLinear"):
        scales = node.inputs[2]
        assert scales is not None
        assert scales.const_value is not None
        assert (scales.const_value.numpy() > 0).all()
        columns = scales.const_value.shape[1]
        assert columns == 1 if node.attributes["bits"].as_int() == 8 else int(columns) >= 2  # type: ignore[arg-type]
