"""A decoder from checkpoint to text: exported, moved, verified, and compared with PyTorch's generation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers

from edgecompress.backends.onnxruntime_cpu.compile import accuracy_levels
from edgecompress.cli import main
from edgecompress.errors import QualityBudgetError, RecipeError, StudentError
from edgecompress.export.pipeline import export
from edgecompress.export.plan import plan
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load
from edgecompress.targets import find_target
from edgecompress.types.recipe import (
    CalibrationRecipe,
    QualityRecipe,
    QuantizeRecipe,
    Recipe,
    RuntimeRecipe,
    StudentRecipe,
)
from tests.decoders import tiny_decoder
from tests.shared_captures import capture_anew

pytestmark = pytest.mark.slow

_NEW_TOKENS = 24


def recipe(source: Path, precision: str, **quantize: object) -> Recipe:
    return Recipe(
        precision=precision,
        student=StudentRecipe(source=str(source)),
        quantize=QuantizeRecipe(**quantize),  # type: ignore[arg-type]
        calibration=CalibrationRecipe(samples=8, max_length_tokens=64),
        quality=QualityRecipe(samples=8, max_kl=10.0, max_perplexity_ratio=10.0),
        runtime=RuntimeRecipe(kernels="none"),  # they have tests of their own, and a build takes seconds
    )


@pytest.fixture(scope="module")
def float_bundle(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported, then moved away from the export's scratch files."""
    made = tmp_path_factory.mktemp("made") / "b"
    export(recipe(small_decoder_dir, "fp32"), made)
    moved = tmp_path_factory.mktemp("moved") / "b"
    shutil.move(made, moved)
    return moved


def test_greedy_text_is_pytorchs(small_decoder_dir: Path, float_bundle: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(small_decoder_dir).eval()
    with load(float_bundle) as generator:
        assert isinstance(generator, Generator)
        ids = generator.token_ids("The return statement leaves the current")
        with torch.no_grad():
            whole = model.generate(torch.tensor([ids]), max_new_tokens=_NEW_TOKENS, do_sample=False)[0].tolist()
        text = generator.generate("The return statement leaves the current", max_new_tokens=_NEW_TOKENS, temperature=0)
        expected = whole[len(ids) :]
        assert list(text.token_ids) == expected
        assert generator.statistics.bytes_copied == 0


def test_a_bundle_verifies_itself_with_what_it_carries(float_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(float_bundle), "--json"]) == 0
    fidelity = json.loads(capsys.readouterr().out)["fidelity"]
    assert fidelity["perplexity_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert fidelity["mean_kl"] == pytest.approx(0.0, abs=1e-4)
    assert fidelity["top1_agreement"] == 1.0


@pytest.mark.parametrize(
    ("precision", "quantize", "ratio"),
    [
        ("int8", {"method": "rtn", "block_size": 32}, 1.01),
        ("int4", {"method": "hqq", "block_size": 32}, 1.25),
        ("int4", {"method": "gptq", "block_size": 32}, 1.15),
    ],
)
def test_weights_in_blocks_keep_the_perplexity(
    precision: str, quantize: dict[str, object], ratio: float, small_decoder_dir: Path, tmp_path: Path
) -> None:
    made = export(recipe(small_decoder_dir, precision, **quantize), tmp_path / "b")
    assert made.manifest.precision == f"{precision}-weights"
    assert made.report.fidelity.perplexity_ratio is not None
    assert made.report.fidelity.perplexity_ratio <= ratio
    kinds = {layer.precision for layer in made.report.layers if layer.op in ("MatMulNBits", "GatherBlockQuantized")}
    assert kinds == {precision}
    with load(tmp_path / "b") as generator:
        assert isinstance(generator, Generator)
        assert generator.generate("The", max_new_tokens=4, temperature=0).token_ids


def test_mixed_bits_are_in_the_report_and_pay(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"block_size": 32, "mean_bits": 5.0}
    made = {name: export(recipe(small_decoder_dir, name, **options), tmp_path / name) for name in ("int4", "mixed")}
    assert made["mixed"].manifest.precision == "mixed-weights"
    kl = {name: result.report.fidelity.mean_kl for name, result in made.items()}
    assert kl["mixed"] is not None
    assert kl["int4"] is not None
    assert kl["mixed"] < 0.8 * kl["int4"]
    report = made["mixed"].report
    measured = [layer for layer in report.layers if layer.alone_kl is not None]
    assert {layer.precision for layer in measured} == {"int4", "int8"}
    weights = {layer.name: layer.bytes * 8 // int(layer.precision[3:]) for layer in measured}
    mean = sum(layer.bytes * 8 for layer in measured) / sum(weights.values())
    assert 4.8 < mean <= 5.0
    assert any(note.startswith(f"{mean:.2f} bits per weight") for note in report.notes)
    packed = [layer for layer in measured if layer.name.endswith(("qkv_proj", "gate_up_proj"))]
    assert len(packed) == 4  # two of each: one width a packed product
    assert main(["inspect", str(tmp_path / "mixed")]) == 0
    assert "KL if it alone is int4" in capsys.readouterr().out
    with load(tmp_path / "mixed") as generator:
        assert isinstance(generator, Generator)
        assert generator.generate("The", max_new_tokens=4, temperature=0).token_ids


def test_the_accuracy_level_is_measured_and_chosen(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("graph.model", "backends.onnxruntime_cpu.compile"):
        monkeypatch.setattr(f"edgecompress.{module}.EXTERNAL_DATA_BYTES", 100_000)
    made = export(recipe(small_decoder_dir, "int4", accuracy_level="auto"), tmp_path / "made")
    rows = made.measurements.candidates
    assert [row.accuracy_level for row in rows] == [4, 1]
    assert all(set(row.shapes_ms) == {"1×128", "1×16", "1×1"} for row in rows)
    # Only the rounding of inputs differs, so the figures do, and not by much.
    assert rows[0].fidelity != rows[1].fidelity
    assert rows[0].fidelity is not None
    assert rows[1].fidelity is not None
    assert rows[0].fidelity.mean_kl == pytest.approx(rows[1].fidelity.mean_kl, rel=0.2)
    (taken,) = [row for row in rows if row.verdict == "chosen"]
    assert f"MatMulNBits at accuracy level {taken.accuracy_level}" in made.report.notes
    shutil.move(tmp_path / "made", tmp_path / "moved")
    _, folder = open_bundle(tmp_path / "moved")
    nodes = [node for node in ir.load(folder / "model.onnx").graph if node.op_type == "MatMulNBits"]
    assert {node.attributes["accuracy_level"].as_int() for node in nodes} == {taken.accuracy_level}
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "\ncandidates\n" in shown
    assert "1×128 ms" in shown
    with load(folder) as generator:
        assert isinstance(generator, Generator)
        assert generator.generate("The", max_new_tokens=4, temperature=0).token_ids


def test_a_target_without_int8_products_has_one_level() -> None:
    assert accuracy_levels(find_target("raspberry-pi-4")) == (1,)
    assert accuracy_levels(find_target("raspberry-pi-5")) == accuracy_levels(find_target("x86-64-avx2")) == (4, 1)


@pytest.mark.parametrize(("name", "method"), [("gpt_oss", "hqq"), ("qwen2_moe", "gptq")])
def test_a_mixture_in_int4_keeps_only_its_routers_in_float(name: str, method: str, tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path / "s", name)
    made = export(recipe(source, "int4", method=method, block_size=32), tmp_path / "b")
    experts = [layer for layer in made.report.layers if layer.op == "QMoE"]
    assert {layer.precision for layer in experts} == {"int4"}
    assert {layer.name for layer in experts if len(layer.shape) == 3} == {
        f"layers.{index}.mlp.experts.{part}" for index in range(2) for part in ("gate_up_proj", "down_proj")
    }
    products = [layer for layer in made.report.layers if layer.op in ("MatMul", "Gemm")]
    assert {layer.name.rpartition(".")[2] for layer in products} == {"router" if name == "gpt_oss" else "gate"}
    assert not any("expert" in note for note in made.report.notes)
    assert made.report.fidelity.mean_kl is not None
    assert made.report.fidelity.mean_kl < 0.5
    with load(tmp_path / "b") as generator:
        assert isinstance(generator, Generator)
        assert len(generator.generate("The", max_new_tokens=4, temperature=0).token_ids) > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gelu-experts", ["in int8: ONNX Runtime's CPU kernels gate experts by swiglu only"]),
        ("mish-experts", ["in float32: their gate is unknown", "stay in float32"]),
    ],
)
def test_gathered_experts_are_named_with_their_precision(name: str, said: list[str], tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path / "s", name)
    made = export(recipe(source, "int8", method="rtn", block_size=32), tmp_path / "b")
    notes = [note for note in made.report.notes if "expert" in note]
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_large_weights_are_in_a_data_file(
    small_decoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_bundle: Path
) -> None:
    for module in ("graph.model", "backends.onnxruntime_cpu.compile"):
        monkeypatch.setattr(f"edgecompress.{module}.EXTERNAL_DATA_BYTES", 100_000)
    export(recipe(small_decoder_dir, "fp32"), tmp_path / "made")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    manifest, folder = open_bundle(tmp_path / "moved")
    assert "model.onnx.data" in manifest.files
    assert (folder / "model.onnx").stat().st_size < 200_000
    with load(folder) as beside, load(float_bundle) as inside:
        assert isinstance(beside, Generator)
        assert isinstance(inside, Generator)
        options = {"max_new_tokens": 8, "temperature": 0}
        assert beside.generate("The", **options) == inside.generate("The", **options)  # type: ignore[call-overload]


def test_auto_tries_the_precisions_of_decoders(small_decoder_dir: Path) -> None:
    assert plan(recipe(small_decoder_dir, "auto")).candidates == ("fp32", "int8-weights", "int4-weights")
    assert plan(recipe(small_decoder_dir, "mixed")).candidates == ("mixed-weights",)
    with pytest.raises(RecipeError, match="a decoder cannot be exported as int8-static"):
        plan(recipe(small_decoder_dir, "int8-static"))


def test_a_missed_budget_is_an_error(small_decoder_dir: Path, tmp_path: Path) -> None:
    made = recipe(small_decoder_dir, "int4")
    strict = Recipe(
        precision="int4",
        student=made.student,
        calibration=made.calibration,
        quality=QualityRecipe(samples=4, max_kl=1e-6),
    )
    with pytest.raises(QualityBudgetError, match="KL divergence"):
        export(strict, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path / "s", "qwen2")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    entry = {"id": 5000, "content": "<far>", "special": True}
    entry |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append(entry)
    words = tokenizer["model"]["vocab"]
    words |= {f"word{i}": len(words) + i for i in range(300)}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StudentError, match="the embedding table has only 128 rows"):
        export(recipe(source, "fp32"), tmp_path / "b")


def test_the_same_input_gives_the_same_bytes(
    small_decoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(recipe(small_decoder_dir, "int4", method="hqq"), tmp_path / "a")
    capture_anew(monkeypatch)
    export(recipe(small_decoder_dir, "int4", method="hqq"), tmp_path / "b")
    first, second = ((tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b"))
    assert first == second
    assert np.load(tmp_path / "a" / "reference.npz")["0/ids"].dtype == np.int32
