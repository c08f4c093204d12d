"""Engines of a decoder that has really learned something, exported whole, where TensorRT-RTX is installed."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from edgecompress.backends.engine_layers import read_layers
from edgecompress.backends.engines import profile_of
from edgecompress.backends.tensorrt_rtx.engine import build_engine
from edgecompress.cli import main
from edgecompress.errors import EngineError
from edgecompress.formats.manifest import open_bundle, read_report
from edgecompress.formats.recipe import read_recipe
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.runtime.bundle import read_settings
from edgecompress.targets import find_target
from edgecompress.types.bundle import ShapeRange
from edgecompress.types.graph import Graph

pytestmark = pytest.mark.slow

trt = pytest.importorskip("tensorrt_rtx", reason="builds engines: pip install 'edgecompress[tensorrt-rtx]'")

CONTEXT = 64
PRECISIONS = {"fp16": "Half", "int8": "Int8", "int4": "Int4", "fp8": "FP8"}
TARGETS = {"rtx-3060": (8, 6), "rtx-4090": (8, 9), "rtx-5090": (12, 0)}
# Query, key and value are one product, gate and up another: four a layer, and the head.
PRODUCTS = 4 * 2 + 1


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For 8.9, whose precision is the name of its folder."""
    path: Path = tmp_path_factory.mktemp("decoder") / request.param
    asked = ["--target", "rtx-4090", "--precision", request.param, "--method", "gptq", "--engine-batch", "1,1,2"]
    asked += ["--engine-context", str(CONTEXT)]
    assert main(["export", str(small_decoder_dir), *asked, "-o", str(path)]) == 0
    return path


def test_the_graph_is_as_good_as_the_student(bundle: Path) -> None:
    fidelity = read_report(bundle).fidelity
    assert fidelity.perplexity_ratio is not None
    assert fidelity.perplexity_ratio <= {"fp16": 1.0005, "int8": 1.002, "int4": 1.02, "fp8": 1.005}[bundle.name]


def test_the_manifest_says_what_a_runtime_must_bind(bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    settings, engine = read_settings(DecoderSettings, manifest).generation, manifest.variant().engine
    assert settings is not None
    assert engine is not None
    assert (settings.kv_dtype, settings.context_length_tokens) == ("float16", CONTEXT)
    assert settings.prefill_chunk_tokens <= CONTEXT
    shape = (settings.kv_heads, CONTEXT, settings.head_size)
    profile = engine.profile
    cache = ShapeRange(smallest=(1, *shape), usual=(1, *shape), largest=(2, *shape))
    assert profile["past_key_values.0.key"] == profile["past_key_values.1.value"] == cache
    assert profile["input_ids"] == ShapeRange(smallest=(1, 1), usual=(1, 1), largest=(2, CONTEXT))
    assert profile["attention_mask"].largest == (2, CONTEXT)
    assert profile["logits_positions"] == ShapeRange(smallest=(1,), usual=(1,), largest=(CONTEXT,))


def test_no_product_is_wider_than_its_weights_and_no_head_is_repeated(bundle: Path) -> None:
    manifest, folder = open_bundle(bundle)
    assert manifest.variant().engine is not None
    layers = read_layers((folder / manifest.variant().engine.layers).read_text(encoding="utf-8"))
    wanted = PRECISIONS[bundle.name]
    products = [
        layer
        for layer in layers
        if any(source.endswith("/MatMul") for source in layer.sources)
        and any(tensor.is_matrix and tensor.dtype == wanted for tensor in layer.constants)
    ]
    assert len(products) == PRODUCTS
    # Where a cache is read whole, the builder writes it out once a query head before it attends.
    repeated = [
        layer.name
        for layer in layers
        if layer.sources
        and all("/Attention" in source for source in layer.sources)
        and any(len(tensor.dims) == 4 and tensor.dims[2] == CONTEXT for tensor in layer.inputs)
    ]
    assert repeated == []


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"rtx-4090"}))
def test_it_is_built_for_every_capability(bundle: Path, tmp_path: Path, target: str) -> None:
    manifest, folder = open_bundle(bundle)
    graph = Graph(path=folder / manifest.variant().path, stage="lowered", precision=manifest.precision)
    profile = profile_of(graph, read_recipe(folder / "recipe.toml").engine)
    assert manifest.variant().engine is not None
    assert profile == manifest.variant().engine.profile
    if bundle.name == "fp8" and TARGETS[target] < (8, 9):
        with pytest.raises(EngineError, match=r"cannot build the fp8 graph: .*fp8_e4m3"):
            build_engine(graph, find_target(target), profile, tmp_path)
        return
    engine = build_engine(graph, find_target(target), profile, tmp_path)
    assert engine.record.compute_capability == TARGETS[target]
    assert engine.matrices[PRECISIONS[bundle.name]] >= PRODUCTS


def test_int8_weights_are_at_most_six_tenths_of_fp16s(small_decoder_dir: Path, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp16", "int8"):
        path = tmp_path / precision
        assert (
            main(["export", str(small_decoder_dir), "--target", "rtx-5090", "--precision", precision, "-o", str(path)])
            == 0
        )
        manifest, _ = open_bundle(path)
        assert manifest.variant().engine is not None
        sizes[precision] = manifest.variant().engine.weights_bytes
    assert sizes["int8"] <= 0.6 * sizes["fp16"]


def test_the_graph_holds_standard_ops_only(bundle: Path) -> None:
    model = ir.load(bundle / "model.onnx")
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    assert model.opset_imports == {"": 24}
