"""One whole export with a real engine, where TensorRT-RTX is installed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from edgecompress.cli import main
from edgecompress.formats.manifest import open_bundle, read_report
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

trt = pytest.importorskip("tensorrt_rtx", reason="builds an engine: pip install 'edgecompress[tensorrt-rtx]'")

ASKED = ["--target", "rtx-5090", "--backend", "tensorrt-rtx", "--precision", "int8", "--engine-tokens", "1,64,256"]


@pytest.fixture(scope="module")
def bundle(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "minilm.bundle"
    assert main(["export", str(minilm_dir), *ASKED, "-o", str(path)]) == 0
    return path


def test_the_manifest_says_what_it_needs(bundle: Path) -> None:
    manifest, folder = open_bundle(bundle)
    engine = manifest.variant().engine
    assert engine is not None
    assert (engine.path, engine.compute_capability, engine.version) == ("model.engine", (12, 0), trt.__version__)
    assert (manifest.variant().backend, manifest.variant().providers) == ("tensorrt-rtx", ())
    assert {"model.engine", "model.engine.layers.txt", "model.onnx", "reference.npz"} <= set(manifest.files)
    assert manifest.versions["tensorrt-rtx"] == trt.__version__
    assert (folder / engine.path).stat().st_size > engine.weights_bytes
    assert "LayerType: gemm" in (folder / engine.layers).read_text(encoding="utf-8")


def test_the_report_is_of_the_graph_and_says_so(bundle: Path) -> None:
    report = read_report(bundle)
    assert report.fidelity.mean_cosine is not None
    assert report.fidelity.mean_cosine >= 0.99
    notes = "\n".join(report.notes)
    assert "the engine itself was not run" in notes
    assert "layers of the engine that read a constant matrix: 1 Half, 26 Int8" in notes
    model = ir.load(bundle / "model.onnx")
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    assert {layer.precision for layer in report.layers} == {"int8", "float16"}


def test_layers_that_the_builder_would_widen_are_float16_by_name(tmp_path: Path) -> None:
    """A ModernBERT's first product is split by the builder in 1.7.1, and its weight written out in float16 for that."""
    source = tiny_checkpoint(
        tmp_path / "modernbert", "modernbert", hidden_size=64, num_attention_heads=2, intermediate_size=128
    )
    bundle = tmp_path / "modernbert.bundle"
    asked = ["--target", "rtx-4090", "--precision", "int8", "--calibration-samples", "16", "-o", str(bundle)]
    assert main(["export", str(source), *asked]) == 0
    report = read_report(bundle)
    kept = [note for note in report.notes if note.startswith("float16, because the builder would widen")]
    floats = {layer.name for layer in report.layers if layer.precision == "float16" and "embeddings" not in layer.name}
    if kept:  # another version may have a kernel for it
        assert floats == set(kept[0].partition(": ")[2].split(", "))
    else:
        assert floats == set()
    assert sum(layer.precision == "int8" for layer in report.layers) >= 11


def test_no_path_of_this_machine_is_in_it(bundle: Path) -> None:
    for name in ("model.engine.layers.txt", "manifest.json", "report.json", "recipe.toml", "README.md"):
        assert str(bundle.parent) not in (bundle / name).read_text(encoding="utf-8")
    assert str(bundle.parent).encode() not in (bundle / "model.engine").read_bytes()
    assert (
        json.loads((bundle / "manifest.json").read_text())["models"]["model"]["variants"][0]["engine"]["os"] == "linux"
    )
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name], "nothing is left beside it"
