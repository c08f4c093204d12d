"""Real engines, built here without a GPU, where TensorRT-RTX is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from edgecompress.backends.engine_layers import read_layers
from edgecompress.backends.engines import profile_of
from edgecompress.backends.tensorrt_rtx.engine import Engine, build_engine, require_builder
from edgecompress.errors import EngineError, HostError
from edgecompress.lower.standard import OPSET, lower
from edgecompress.targets import find_target
from edgecompress.types.bundle import ShapeRange
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import EngineRecipe
from tests.engines.typed import PRECISIONS, typed

pytestmark = pytest.mark.slow

trt = pytest.importorskip("tensorrt_rtx", reason="builds engines: pip install 'edgecompress[tensorrt-rtx]'")

TARGETS = {"rtx-3060": (8, 6), "rtx-4090": (8, 9), "rtx-5090": (12, 0)}
RECIPE = EngineRecipe(batch=(1, 4, 16), length_tokens=(1, 64, 128))


def built(folder: Path, precision: str, target: str, out: Path) -> Engine:
    graph = typed(folder, precision)
    return build_engine(graph, find_target(target), profile_of(graph, RECIPE), out)


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_minilm_is_built_for_every_capability(minilm_typed: Path, tmp_path: Path, precision: str, target: str) -> None:
    if precision == "fp8" and TARGETS[target] < (8, 9):
        with pytest.raises(EngineError, match=r"cannot build the fp8 graph: .*fp8_e4m3"):
            built(minilm_typed, precision, target, tmp_path)
        return
    engine = built(minilm_typed, precision, target, tmp_path)
    record = engine.record
    assert record.compute_capability == TARGETS[target]
    assert (record.builder, record.version, record.os) == ("tensorrt-rtx", trt.__version__, "linux")
    assert engine.engine.suffix == ".engine"
    assert engine.engine.stat().st_size > record.weights_bytes > 0
    assert record.profile["input_ids"] == ShapeRange(smallest=(1, 1), usual=(4, 64), largest=(16, 128))
    text = engine.layers.read_text(encoding="utf-8")
    assert "MinShape: [1,1], OptShape: [4,64], MaxShape: [16,128]" in text
    kinds = {layer.kind for layer in read_layers(text)}
    assert kinds & {"gemm", "runtime_fusion"}
    wanted = {"fp16": "Half", "int8-static": "Int8", "int4-weights": "Int4", "fp8": "FP8"}[precision]
    # Query, key and value of a layer are one product, but for int4: that makes 24 or 36, and the lookups beside.
    assert engine.matrices[wanted] >= 24


def test_int8_is_at_most_six_tenths_of_fp16(minilm_typed: Path, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp16", "int8-static"):
        engine = built(minilm_typed, precision, "rtx-4090", tmp_path)
        sizes[precision] = (engine.record.weights_bytes, engine.engine.stat().st_size)
    weights, files = (sizes["int8-static"][i] / sizes["fp16"][i] for i in (0, 1))
    assert weights <= 0.6
    assert files <= 0.6


def test_a_norm_writes_8_bits_and_nothing_else(minilm_typed: Path, tmp_path: Path) -> None:
    """What both sides of the residual additions are quantized for: no norm but the last hands on floats."""
    lines = built(minilm_typed, "int8-static", "rtx-4090", tmp_path).layers.read_text().splitlines()
    norms = [line for line in lines if "/LayerNormalization]" in line and "LayerType: kgen" in line]
    floats = [line for line in norms if "Datatype: Int8" not in line.partition("Outputs: ")[2]]
    assert len(norms) >= 13
    assert all("layer.5.output.LayerNorm" in line for line in floats)


def test_the_same_graph_gives_the_same_bytes(minilm_typed: Path, tmp_path: Path) -> None:
    first = built(minilm_typed, "int8-static", "rtx-4090", tmp_path).engine.read_bytes()
    assert built(minilm_typed, "int8-static", "rtx-4090", tmp_path).engine.read_bytes() == first


def small(
    tmp_path: Path,
    body: str,
    inputs: str = "float16[batch,sequence,64] x",
    output: str = "float16[batch,sequence,64] y",
) -> Graph:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {OPSET}, "elsewhere" : 1]> g ({inputs}) => ({output}) {{ {body} }}'
    )
    for index, node in enumerate(model.graph):
        node.name = f"block.{index}/{node.op_type}"
    path = tmp_path / "small.onnx"
    ir.save(model, path)
    return Graph(path=path, stage="lowered", precision="fp16")


def test_the_parsers_verdict_names_node_and_op(tmp_path: Path) -> None:
    graph = small(tmp_path, "a = Relu(x)  b = elsewhere.Whirl(a)  c = elsewhere.Twist(b)  y = Relu(c)")
    with pytest.raises(EngineError) as caught:
        build_engine(graph, find_target("rtx-4090"), profile_of(graph, RECIPE), tmp_path)
    assert caught.value.exit_code == 3
    assert f"TensorRT-RTX {trt.__version__} rejects the fp16 graph:\n" in caught.value.message
    assert "\n  block.1/Whirl (Whirl): " in caught.value.message
    assert not (tmp_path / "model.engine").exists()


def test_what_no_kernel_is_for_is_said_by_the_builder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Heads of 8 have none; and what the library prints on its own stays away from the user."""
    graph = small(tmp_path, "q = Relu(x)  y = Attention <q_num_heads = 8, kv_num_heads = 8> (q, x, x)")
    with pytest.raises(EngineError, match=r"cannot build the fp16 graph: .*Attention operation was not supported"):
        build_engine(graph, find_target("rtx-4090"), profile_of(graph, RECIPE), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_capability_that_it_does_not_build_for() -> None:
    orin = replace(find_target("rtx-4090"), name="some-orin", compute_capability=(8, 7))
    with pytest.raises(HostError, match=r"does not support compute capability 8\.7 \(some-orin\)") as caught:
        require_builder(orin)
    assert "8.6, 8.9, 12.0" in caught.value.hint.replace("8.0, ", "")


def test_values_that_float16_cannot_hold_are_float32_in_the_engine(minilm_typed: Path, tmp_path: Path) -> None:
    """As if the calibration text had shown the first layer's additions to be that large."""
    quantized = Graph(path=minilm_typed / "quantized-int8-static.onnx", stage="quantized", precision="int8-static")
    graph = lower(quantized, tmp_path, wide=("linear_3", "add_97"))
    engine = build_engine(graph, find_target("rtx-4090"), profile_of(graph, RECIPE), tmp_path)
    written = {}
    for line in engine.layers.read_text(encoding="utf-8").splitlines():
        for layer in (0, 1):
            if f"layer.{layer}.attention.output.dense/MatMul]" in line and "[384,384]" in line:
                written[layer] = line.partition("Outputs: ")[2]
    assert "Datatype: Float" in written[0], "its sums are not cut to float16"
    assert "Datatype: Half" in written[1]
