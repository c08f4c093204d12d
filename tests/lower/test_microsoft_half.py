"""Graphs for ONNX Runtime's CUDA provider: its fused ops in float16, held against PyTorch with every rounding done."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from edgecompress.cli import main
from edgecompress.errors import HostError, RecipeError
from edgecompress.export.plan import plan
from edgecompress.formats.manifest import open_bundle, read_report
from edgecompress.lower import microsoft_half
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.runtime import load
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import QuantizeRecipe, Recipe, RuntimeRecipe, StudentRecipe
from tests.conftest import CapturedDecoder
from tests.decoders import largest_difference, tiny_decoder

pytestmark = pytest.mark.slow

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
BASE = Recipe(target="h200", backend="onnxruntime")


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "phi3", "gpt2"])
def test_a_decoder_computes_what_pytorch_does(tmp_path: Path, kind: str, captured_decoder: CapturedDecoder) -> None:
    checkpoint, captured = captured_decoder(kind)
    graph = microsoft_half.lower(Graph(path=captured.path, stage="quantized", precision="fp16"), tmp_path)
    model = ir.load(graph.path)
    types = {
        op: {n.outputs[0].dtype for n in model.graph if n.op_type == op} for op in ("GroupQueryAttention", "MatMul")
    }
    assert types == {"GroupQueryAttention": {HALF}, "MatMul": {HALF}}
    norms = [node for node in model.graph if "LayerNormalization" in node.op_type]
    assert {node.outputs[0].dtype for node in norms} == {FLOAT}
    caches = [
        value
        for value in (*model.graph.inputs, *model.graph.outputs)
        if (value.name or "").endswith((".key", ".value"))
    ]
    assert len(caches) == 8
    assert {value.dtype for value in caches} == {HALF}
    assert (model.graph.outputs[0].name, model.graph.outputs[0].dtype) == ("logits", FLOAT)
    assert largest_difference(checkpoint, rounded_graph(graph, tmp_path).path, poison=1e4) <= 0.05


def test_minilm_is_exported_and_never_run_on_a_cpu(minilm_dir: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "cuda.bundle"
    asked = ["--target", "h200", "--backend", "onnxruntime", "--precision", "fp16", "--calibration-samples", "16"]
    assert main(["export", str(minilm_dir), *asked, "-o", str(bundle)]) == 0
    manifest, _ = open_bundle(bundle)
    assert (manifest.precision, manifest.variant().providers) == ("fp16", ("CUDAExecutionProvider",))
    assert manifest.variant().runtime.graph_optimization == "all"
    report = read_report(bundle)
    assert report.fidelity.mean_cosine is not None
    assert report.fidelity.mean_cosine >= 0.9999
    assert any(note.endswith("not yet run on a GPU") for note in report.notes)
    model = ir.load(bundle / "model.onnx")
    assert {node.outputs[0].dtype for node in model.graph if node.op_type == "MultiHeadAttention"} == {HALF}
    with pytest.raises(HostError, match=r"is for h200: the NVIDIA driver's libcuda") as caught:
        load(bundle, allow_mismatch=True)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8-dynamic"}, "does not support int8-dynamic for ONNX Runtime's CUDA provider"),
        ({"precision": "fp8"}, "does not support fp8 for ONNX Runtime's CUDA provider"),
        ({"precision": "fp16", "runtime": RuntimeRecipe(kernels="matmul")}, "for ONNX Runtime on a CPU"),
        ({"precision": "fp16", "quantize": QuantizeRecipe(kv_cache="int8")}, "a GPU's KV cache is float16"),
        ({"precision": "fp16", "format": "genai"}, "does not support --format genai for GPUs"),
    ],
)
def test_what_it_is_not_made_as_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    student = StudentRecipe(source=str(tiny_decoder(tmp_path / "student", "qwen2")))
    with pytest.raises(RecipeError, match=message):
        plan(Recipe(**{**vars(BASE), "student": student, **changes}))  # type: ignore[arg-type]


def test_auto_is_float16(tmp_path: Path) -> None:
    student = StudentRecipe(source=str(tiny_decoder(tmp_path / "student", "qwen2")))
    job = plan(Recipe(target="h200", backend="onnxruntime", student=student))
    assert job.candidates == (job.recipe.precision,) == ("fp16",)
