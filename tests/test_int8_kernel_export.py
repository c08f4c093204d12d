"""A decoder with an int8 KV cache and our kernels, from export to text, beside the same with the stock attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgecompress.backends.onnxruntime_cpu.kernel_timing import time_kernels
from edgecompress.backends.onnxruntime_cpu.kernels import use_kernels
from edgecompress.cli import main
from edgecompress.errors import RecipeError
from edgecompress.export.pipeline import export
from edgecompress.formats.manifest import read_manifest
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load
from edgecompress.targets import find_target
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import CalibrationRecipe, QualityRecipe, QuantizeRecipe, Recipe, RuntimeRecipe
from edgecompress.types.recipe import StudentRecipe as Student
from tests.kernels.ops import needs_kernels

PROMPTS = ("The import statement", "A list is a list is a list is", "return the return value of the return")
pytestmark = [pytest.mark.slow, needs_kernels]


def recipe(source: Path, wanted: str) -> Recipe:
    return Recipe(
        precision="int4",
        student=Student(source=str(source)),
        quantize=QuantizeRecipe(block_size=32, kv_cache="int8"),
        calibration=CalibrationRecipe(samples=8, max_length_tokens=64),
        quality=QualityRecipe(samples=8, max_kl=10.0, max_perplexity_ratio=10.0),
        runtime=RuntimeRecipe(kernels=wanted),
    )


@pytest.fixture(scope="module")
def bundles(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """With our attention, and with ONNX Runtime's; the products are ours in both."""
    made = tuple(tmp_path_factory.mktemp("made") / name for name in ("ours", "stock"))
    for path, wanted in zip(made, ("matmul,attention", "matmul"), strict=True):
        export(recipe(small_decoder_dir, wanted), path)
    return made[0], made[1]


def told(bundle: Path, name: str) -> Any:
    return json.loads((bundle / name).read_text())


def test_the_op_is_ours_and_the_bundle_is_otherwise_the_same(
    bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, stock = bundles
    assert told(ours, "report.json")["ops"]["CachedAttentionInt8"] == 2
    assert "GroupQueryAttention" not in told(ours, "report.json")["ops"]
    assert told(stock, "report.json")["ops"]["GroupQueryAttention"] == 2
    manifests = read_manifest(ours), read_manifest(stock)
    assert manifests[0].settings == manifests[1].settings
    assert manifests[0].variant().inputs == manifests[1].variant().inputs
    assert manifests[0].variant().outputs == manifests[1].variant().outputs
    (use,) = [use for use in told(ours, "measurements.json")["kernels"] if use["kernel"] == "attention"]
    assert use["used"]
    assert use["what"].endswith(", int8 cache")
    assert main(["verify", str(ours)]) == 0
    capsys.readouterr()


def test_the_quality_is_that_of_the_stock_op(bundles: tuple[Path, Path]) -> None:
    """The kernel's own rounding is a hundredth of the cache's: the perplexity shows nothing of it."""
    ours, stock = (told(bundle, "report.json") for bundle in bundles)
    for one in (ours, stock):
        assert 0.998 <= one["kv_cache"]["perplexity_ratio"] <= 1.002
    assert ours["fidelity"]["perplexity_ratio"] == pytest.approx(stock["fidelity"]["perplexity_ratio"], rel=2e-4)
    assert ours["fidelity"]["mean_kl"] == pytest.approx(stock["fidelity"]["mean_kl"], rel=1e-2)


@pytest.mark.parametrize("drafted", [1, 3, 7])
def test_drafts_give_exactly_the_text_of_single_steps(bundles: tuple[Path, Path], drafted: int) -> None:
    """Which ONNX Runtime's op over an int8 cache does not (docs/adr/0007)."""
    with load(bundles[0]) as generator:
        assert isinstance(generator, Generator)
        for prompt in PROMPTS:
            options = {"max_new_tokens": 60, "temperature": 0.0}
            plain = generator.generate(prompt, **options)  # type: ignore[arg-type]
            assert generator.generate(prompt, lookup_tokens=drafted, **options).token_ids == plain.token_ids  # type: ignore[arg-type]


def test_texts_of_a_batch_are_those_alone(bundles: tuple[Path, Path]) -> None:
    with load(bundles[0]) as generator:
        assert isinstance(generator, Generator)
        together = generator.generate(list(PROMPTS), max_new_tokens=20, temperature=0.0)
        assert generator.statistics.kv_cache_dtype == "int8"
        assert generator.statistics.bytes_copied == 0
        for prompt, found in zip(PROMPTS, together, strict=True):
            assert generator.generate(prompt, max_new_tokens=20, temperature=0.0).token_ids == found.token_ids


@pytest.mark.parametrize(("rotary", "window"), [(64, -1), (0, 100)])
def test_it_is_measured_beside_the_stock_op(library: Path, rotary: int, window: int) -> None:
    speedups = time_kernels("attention", (4, 2, 64, rotary, window, True), 1, library)
    assert set(speedups) == {"a step behind 128 tokens", "a step behind 1024 tokens", "a prompt of 64"}
    assert min(speedups.values()) > 0


def test_a_cache_of_one_scale_has_no_kernel(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[b,t,256] q, int8[b,1,c,64] past_k, int8[b,1,c,64] past_v, int32[b] last, int32 total, float[1] scale)
        => (float[b,t,128] y, int8[b,1,c,64] k_out, int8[b,1,c,64] v_out)
        { y, k_out, v_out = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1, kv_cache_bit_width = 8,
            k_quant_type = "PER_TENSOR", v_quant_type = "PER_TENSOR">
            (q, , , past_k, past_v, last, total, , , , , , scale, scale) }
    """
    path = tmp_path / "m.onnx"
    ir.save(ir.from_onnx_text(text), path)
    graph = Graph(path=path, stage="compiled", precision="fp32")
    found = use_kernels(graph, find_target("local"), "auto", 1, tmp_path, measured_here=True)
    assert found.graph is graph
    assert [use.reason for use in found.uses] == ["its cache does not have per-channel scales"]
    with pytest.raises(
        RecipeError,
        match=r"'attention' does not support any op .* its cache does not have per-channel",
    ):
        use_kernels(graph, find_target("local"), "attention", 1, tmp_path, measured_here=True)
