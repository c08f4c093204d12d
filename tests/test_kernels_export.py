"""Our kernels from export to text: used where asked for, exact with drafts, explained where they cannot be."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from edgecompress_kernels.cpu.isa import ISAS

from edgecompress.cli import main
from edgecompress.errors import BundleError, HostError, RecipeError
from edgecompress.export.pipeline import export
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load
from edgecompress.runtime.weights import Weight, add_weights, huge_region, read_table
from edgecompress.targets import known_targets
from edgecompress.types.recipe import QualityRecipe, QuantizeRecipe, Recipe, RuntimeRecipe, StudentRecipe
from tests.kernels.ops import ISA, LIBRARY_FILE, needs_kernels

pytestmark = pytest.mark.slow

PROMPTS = ("The import statement", "A list is a list is a list is", "return the return value of the return")


def recipe(source: Path, wanted: str, target: str = "local", **changes: object) -> Recipe:
    return Recipe(
        target=target,
        precision="int4",
        student=StudentRecipe(source=str(source)),
        quantize=QuantizeRecipe(block_size=32, **changes),  # type: ignore[arg-type]
        quality=QualityRecipe(max_kl=10, max_perplexity_ratio=10, samples=4),
        runtime=RuntimeRecipe(kernels=wanted),
    )


@pytest.fixture(scope="module")
def bundle(kernel_bundle: Path) -> Path:
    return kernel_bundle


@needs_kernels
def test_a_bundle_with_kernels_is_whole(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["models"]["model"]["variants"][0]["kernels"] == {
        "path": LIBRARY_FILE,
        "isa": ISA.name if ISA else None,
        "weights": "model.weights.json",
    }
    assert {LIBRARY_FILE, "model.weights.json", "model.onnx.data"} <= set(manifest["files"])
    report = json.loads((bundle / "report.json").read_text())
    assert report["ops"]["DecoderLayer"] == 2
    assert not {"GroupQueryAttention", "CachedAttention", "QuickGelu"} & set(report["ops"])
    weights = {layer["name"]: layer["precision"] for layer in report["layers"] if layer["op"] == "DecoderLayer"}
    assert weights["model.layers.1.mlp.down_proj"] == "int4"
    assert main(["verify", str(bundle)]) == 0
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "named in --kernels" in shown
    assert "DecoderLayer" in shown


@needs_kernels
def test_the_kernels_compute_what_the_stock_ops_do(bundle: Path, small_decoder_dir: Path, tmp_path: Path) -> None:
    export(recipe(small_decoder_dir, "none"), tmp_path / "stock")
    figures = [json.loads((p / "report.json").read_text())["fidelity"] for p in (bundle, tmp_path / "stock")]
    assert abs(figures[0]["perplexity_ratio"] - figures[1]["perplexity_ratio"]) < 2e-3
    assert not list((tmp_path / "stock").glob("*.so"))


@needs_kernels
@pytest.mark.parametrize("drafted", [1, 3, 7])
def test_drafts_give_exactly_the_text_of_single_steps(bundle: Path, drafted: int) -> None:
    with load(bundle) as generator:
        assert isinstance(generator, Generator)
        for prompt in PROMPTS:
            options = {"max_new_tokens": 60, "temperature": 0.0}
            plain = generator.generate(prompt, **options)  # type: ignore[arg-type]
            assert generator.generate(prompt, lookup_tokens=drafted, **options).token_ids == plain.token_ids  # type: ignore[arg-type]


@needs_kernels
def test_texts_of_a_batch_are_those_alone(bundle: Path) -> None:
    with load(bundle) as generator:
        assert isinstance(generator, Generator)
        together = generator.generate(list(PROMPTS), max_new_tokens=20, temperature=0.0)
        for prompt, found in zip(PROMPTS, together, strict=True):
            assert generator.generate(prompt, max_new_tokens=20, temperature=0.0).token_ids == found.token_ids


@needs_kernels
def test_auto_says_what_it_measured(small_decoder_dir: Path, tmp_path: Path) -> None:
    made = export(recipe(small_decoder_dir, "auto"), tmp_path / "b")
    uses = made.measurements.kernels
    assert {use.kernel for use in uses} >= {"matmul", "attention"}
    layer = next((use for use in uses if use.kernel == "layer"), None)
    assert (layer is not None) == (made.manifest.variant().kernels is not None)
    if layer is not None and layer.nodes:
        assert re.fullmatch(r"\d+( or \d+)* steps as one op", layer.what)
    elif layer is not None:  # where nothing around an attention of ours was measured to be faster
        assert not layer.used
        assert layer.reason.endswith("or use ONNX Runtime's op")
    measured = [use for use in uses if use.speedups]
    assert measured
    for use in measured:
        assert use.reason == ("faster" if use.used else "not faster")
        assert all(speed > 0 for speed in use.speedups.values())
    assert (made.manifest.variant().kernels is not None) == any(use.used for use in uses)


def test_another_target_keeps_the_stock_ops_and_says_why(small_decoder_dir: Path, tmp_path: Path) -> None:
    made = export(recipe(small_decoder_dir, "auto", target="raspberry-pi-5"), tmp_path / "b")
    assert made.manifest.variant().kernels is None
    reasons = {use.reason for use in made.measurements.kernels}
    assert any(
        r.startswith("not measured: this machine is not a raspberry-pi-5; export on the device") for r in reasons
    )


@needs_kernels
def test_kernels_for_another_target_are_built_for_it_and_verified_here(bundle: Path, pi_bundle: Path) -> None:
    manifest, measured, report, here = (
        json.loads((folder / name).read_text())
        for folder, name in (
            (pi_bundle, "manifest.json"),
            (pi_bundle, "measurements.json"),
            (pi_bundle, "report.json"),
            (bundle, "report.json"),
        )
    )
    assert manifest["models"]["model"]["variants"][0]["kernels"]["isa"] == "cortex-a76"
    library = (pi_bundle / "kernels-cortex-a76.so").read_bytes()
    assert int.from_bytes(library[18:20], "little") == 183  # aarch64
    assert [path.name for path in pi_bundle.glob("*.so")] == ["kernels-cortex-a76.so"]
    assert {use["reason"] for use in measured["kernels"] if use["used"]} == {"named in --kernels, not measured"}
    assert report["fidelity"]["perplexity_ratio"] == here["fidelity"]["perplexity_ratio"]
    with pytest.raises(HostError, match=r"kernels-cortex-a76\.so' are for aarch64 and this machine is x86_64"):
        load(pi_bundle, allow_mismatch=True)


def test_a_target_that_names_no_known_instruction_set_keeps_the_stock_ops(
    small_decoder_dir: Path, tmp_path: Path
) -> None:
    board = tmp_path / "board.toml"
    text = known_targets()["raspberry-pi-5"].read_text()
    board.write_text(text.replace('"raspberry-pi-5"', '"board"').replace('"cortex-a76"', '"cortex-m4"'))
    with pytest.raises(RecipeError, match="cannot be built for board: its kernel_isa 'cortex-m4' is not one of"):
        export(recipe(small_decoder_dir, "attention", target=str(board)), tmp_path / "c")


def test_without_a_compiler_the_stock_ops_stay(
    small_decoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    made = export(recipe(small_decoder_dir, "auto"), tmp_path / "b")
    assert made.manifest.variant().kernels is None
    assert any("numba is not installed" in use.reason for use in made.measurements.kernels)


def test_inputs_in_float32_have_no_kernel(small_decoder_dir: Path, tmp_path: Path) -> None:
    made = export(recipe(small_decoder_dir, "auto", accuracy_level=1), tmp_path / "b")
    assert any("stay in float32" in use.reason for use in made.measurements.kernels if use.kernel == "matmul")
    with pytest.raises(RecipeError, match="does not support any op of this model"):
        export(recipe(small_decoder_dir, "matmul", accuracy_level=1), tmp_path / "c")
    with pytest.raises(RecipeError, match="the kernel 'layer' does not support any op of this model"):
        export(recipe(small_decoder_dir, "layer"), tmp_path / "c")


def test_a_kernel_without_sense_is_refused(small_decoder_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(small_decoder_dir), "--kernels", "triton", "-o", "never"]) == 2
    assert (
        "kernels must be auto, none or some of matmul, attention, layer, encoder, not 'triton'"
        in capsys.readouterr().err
    )
    assert main(["export", str(small_decoder_dir), "--format", "genai", "--kernels", "matmul", "-o", "never"]) == 2
    assert "onnxruntime-genai cannot load our kernels" in capsys.readouterr().err
    assert not Path("never").exists()


def test_kernels_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels"]) == 0
    shown = capsys.readouterr().out
    assert "CachedAttention" in shown
    assert "x86-64-v4-vnni" in shown
    assert "run on an H200 (9.0)" in shown
    assert "for other chips" in shown
    assert main(["kernels", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    sets = {row["kernel"]: {isa["isa"] for isa in row["instruction_sets"]} for row in rows if "op" in row}
    assert sets == {kernel: set(ISAS) for kernel in ("matmul", "attention", "layer", "encoder")}
    of_gpus = [row for row in rows if "op" not in row]
    assert [row["kernel"] for row in of_gpus] == ["gpu-prefill", "gpu-prefill-hopper", "gpu-decode", "gpu-add-norm"]
    assert [("8.7" in row["compute_capabilities"]) for row in of_gpus] == [True, False, True, True]
    assert all("9.0" in row["compute_capabilities"] for row in of_gpus)
    assert all("interpreter, not yet run on a GPU" in row["verified"] for row in of_gpus)


def test_weights_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('[{"name": "w", "dtype": "uint8", "shape": [8], "offset": 0, "bytes": 8}]')
    (tmp_path / "data").write_bytes(b"abc")
    table = read_table(tmp_path / "table.json")
    assert table == [Weight(name="w", dtype="uint8", shape=(8,), offset=0, bytes=8)]
    with pytest.raises(BundleError, match="ends before its weights do"):
        add_weights(ort.SessionOptions(), table, tmp_path / "data")
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(BundleError, match="is not a valid table of weights"):
        read_table(tmp_path / "table.json")


def test_a_region_begins_at_a_huge_page() -> None:
    region = huge_region(3_000_000)
    assert region.ctypes.data % (2 << 20) == 0
    assert region.nbytes == 3_000_000
    assert not np.any(region)
