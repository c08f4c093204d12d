"""The encoder kernels from export to vectors: results, masks, and refusals with their reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.backends.onnxruntime_cpu.encoder_kernels import use_encoder_kernels
from edgecompress.backends.onnxruntime_cpu.encoder_layers import NotFound, find_chain
from edgecompress.cli import main
from edgecompress.errors import RecipeError
from edgecompress.export.pipeline import export
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.runtime import load
from edgecompress.targets import find_target
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import CalibrationRecipe, QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe
from tests.kernels.ops import ISA, LIBRARY_FILE, needs_kernels
from tests.tiny import SENTENCES, tiny_checkpoint

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 112}
SIZES_OF = {"bert": SIZES, "roberta": SIZES, "distilbert": {"dim": 64, "n_heads": 2, "hidden_dim": 112}}


def recipe(source: Path, wanted: str, precision: str = "int8-dynamic", target: str = "local") -> Recipe:
    return Recipe(
        target=target,
        precision=precision,
        student=StudentRecipe(source=str(source)),
        calibration=CalibrationRecipe(samples=16),
        quality=QualityRecipe(min_fidelity=0.9, samples=8),
        runtime=RuntimeRecipe(kernels=wanted),
    )


@pytest.fixture(scope="module")
def packed(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real student, exported with the encoder kernels."""
    path = tmp_path_factory.mktemp("kernels") / "minilm"
    export(recipe(minilm_dir, "encoder"), path)
    return path


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A tiny student's graph of ONNX Runtime's ops."""
    folder = tmp_path_factory.mktemp("stock")
    export(recipe(tiny_checkpoint(folder / "student", "bert", **SIZES), "none"), folder / "b")
    return Graph(path=folder / "b" / "model.onnx", stage="compiled", precision="int8-dynamic")


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    def make(model_type: str, **sizes: int) -> Path:
        return tiny_checkpoint(tmp_path / f"{model_type}-student", model_type, **(SIZES_OF.get(model_type, {}) | sizes))

    return make


def encoder_of(bundle: Path, threads: int = 1) -> Encoder:
    loaded = load(bundle, threads=threads)
    assert isinstance(loaded, Encoder)
    return loaded


@needs_kernels
def test_a_bundle_says_what_it_holds(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["models"]["model"]["variants"][0]["kernels"] == {
        "path": LIBRARY_FILE,
        "isa": ISA.name if ISA else None,
        "weights": "model.weights.json",
    }
    assert manifest["models"]["model"]["variants"][0]["runtime"]["mixed_lengths"] is True
    assert manifest["models"]["model"]["variants"][0]["runtime"]["batch_tokens"] == 512
    assert [i["name"] for i in manifest["models"]["model"]["variants"][0]["inputs"]] == ["input_ids", "attention_mask"]
    report = json.loads((packed / "report.json").read_text())
    assert report["ops"]["EncoderLayer"] == 6
    assert not {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "If", "UnpackTokens"} & set(report["ops"])
    layers = [layer["name"] for layer in report["layers"] if layer["op"] == "EncoderLayer"]
    assert "encoder.layer.0.intermediate.dense" in layers
    assert len(layers) == 6 * 3 + 5
    assert main(["verify", str(packed)]) == 0
    assert main(["inspect", str(packed)]) == 0
    assert "hidden 384, 12 heads, feed-forward 1536" in capsys.readouterr().out


@needs_kernels
def test_it_is_more_accurate_than_the_stock_ops(packed: Path, minilm_bundle: Path) -> None:
    """Rounding row by row loses less than one range for a whole batch."""
    figures = [json.loads((b / "report.json").read_text())["fidelity"] for b in (packed, minilm_bundle)]
    assert 1 - figures[0]["mean_cosine"] < 0.6 * (1 - figures[1]["mean_cosine"])


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_texts_of_a_mixed_batch_are_those_alone(packed: Path, threads: int) -> None:
    texts = [f"{'word ' * (i * 7 % 40 + 1)}number {i}" for i in range(50)]
    with encoder_of(packed, threads) as encoder:
        together = encoder.encode(texts)
        alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert (alone * together).sum(1).min() > 0.9995


@needs_kernels
def test_plain_onnxruntime_runs_it_with_any_mask(packed: Path) -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(packed / LIBRARY_FILE))
    session = ort.InferenceSession(str(packed / "model.onnx"), options, providers=["CPUExecutionProvider"])
    ids = np.full((3, 9), 999_999, dtype=np.int64)  # no such token: what is masked is not even looked up
    ids[0, 2:7], ids[1] = [101, 2023, 2003, 2204, 102], [101, 7592, 2088, 1010, 2023, 2003, 1037, 3231, 102]
    mask = (ids != 999_999).astype(np.int64)
    found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    whole = session.run(None, {"input_ids": ids[1:2], "attention_mask": mask[1:2]})[0]
    assert found[1] @ whole[0] > 0.9995
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-4)
    assert not found[2].any()  # a text of no tokens
    nothing = session.run(None, {"input_ids": ids[:0], "attention_mask": mask[:0]})[0]
    assert nothing.shape == (0, 384)


@needs_kernels
@pytest.mark.parametrize("model_type", ["distilbert", "roberta"])
def test_tokens_come_back_in_their_places(model_type: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    made = export(recipe(tiny(model_type), "encoder"), tmp_path / "b")
    assert [(use.kernel, use.nodes, use.reason) for use in made.measurements.kernels] == [
        ("encoder", 2, "named in --kernels")
    ]
    assert made.report.fidelity.mean_cosine is not None
    assert made.report.fidelity.mean_cosine > 0.999
    with encoder_of(tmp_path / "b") as encoder:
        together = encoder.encode_tokens(SENTENCES)
        alone = [encoder.encode_tokens([text])[0] for text in SENTENCES]
        feed = {"input_ids": np.full((2, 6), 5), "attention_mask": np.array([[1] * 6, [1, 1, 0, 0, 0, 0]])}
        output = encoder.run({name: value.astype(np.int64) for name, value in feed.items()})[0]
    for a, b in zip(together, alone, strict=True):
        assert a.shape == b.shape
        assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.999
    assert output.shape == (2, 6, 64)
    assert not output[1, 2:].any()


@needs_kernels
def test_auto_says_what_it_measured(tiny: Callable[..., Path], tmp_path: Path) -> None:
    made = export(recipe(tiny("bert"), "auto"), tmp_path / "b")
    (use,) = made.measurements.kernels
    assert set(use.speedups) == {"1×16", "1×100", "8×100"}  # its longest text
    assert use.reason == ("faster" if use.used else "not faster")
    assert (made.manifest.variant().kernels is not None) == use.used == made.manifest.variant().runtime.mixed_lengths


@pytest.mark.parametrize(
    ("model_type", "sizes", "precision", "reason"),
    [
        ("bert", SIZES, "int8-static", "no BERT-style layer: int8 attention"),
        ("bert", SIZES | {"num_attention_heads": 8}, "int8-dynamic", "is not a multiple of 16"),
    ],
)
def test_what_has_no_kernel_keeps_the_stock_ops_and_says_why(
    model_type: str, sizes: dict[str, int], precision: str, reason: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    made = export(recipe(tiny(model_type, **sizes), "auto", precision), tmp_path / "b")
    assert made.manifest.variant().kernels is None
    assert not made.manifest.variant().runtime.mixed_lengths
    assert [use.used for use in made.measurements.kernels] == [False]
    assert reason in made.measurements.kernels[0].reason
    graph = Graph(path=tmp_path / "b" / "model.onnx", stage="compiled", precision=precision)
    with pytest.raises(RecipeError, match=reason):
        use_encoder_kernels(graph, find_target("local"), "encoder", 1, tmp_path, cases=None)


def test_another_target_and_another_kernel_are_explained(stock: Graph, tmp_path: Path) -> None:
    there = find_target("raspberry-pi-5")
    found = use_encoder_kernels(stock, there, "auto", 1, tmp_path, cases=None)
    assert found.record is None
    assert found.uses[0].reason.startswith("not measured: this machine is not a raspberry-pi-5")
    with pytest.raises(RecipeError, match="the kernel 'matmul' does not support any op of this model"):
        use_encoder_kernels(stock, find_target("local"), "encoder,matmul", 1, tmp_path, cases=None)


@needs_kernels
def test_what_is_not_measured_is_not_used(stock: Graph, tmp_path: Path) -> None:
    (use,) = use_encoder_kernels(stock, find_target("local"), "auto", 1, tmp_path, cases=None).uses
    assert not use.used
    assert use.reason.startswith("not measured: this machine is not a local; export on the device")


def test_a_layer_that_others_read_is_left_alone(stock: Graph) -> None:
    chain = find_chain(ir.load(stock.path))
    assert (len(chain.layers), chain.hidden, chain.heads, chain.feed_forward) == (2, 64, 2, 112)
    for value in (chain.layers[0].y, chain.layers[1].up.x, chain.layers[0].down.x, chain.between[-1].inputs[0]):
        assert value is not None
        model = ir.load(stock.path)
        again = next(v for node in model.graph for v in node.outputs if v.name == value.name)
        model.graph.outputs.append(again)
        with pytest.raises(NotFound):
            find_chain(model)
