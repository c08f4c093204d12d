"""A decoder exported with an int8 KV cache, from checkpoint to text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli import main
from edgecompress.errors import RecipeError
from edgecompress.export.pipeline import export
from edgecompress.export.plan import plan
from edgecompress.formats.manifest import open_bundle, read_report
from edgecompress.graph.sessions import GraphModel, make_session, open_model
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.check import logits_of, text_feed
from edgecompress.kinds.decoder.metric import DecoderFidelity
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.lower.kv_cache import lower_cache
from edgecompress.lower.microsoft import lower
from edgecompress.quantize.kv_cache import cache_scales, spread_positions
from edgecompress.runtime import load
from edgecompress.runtime.bundle import read_settings
from edgecompress.types.recipe import CalibrationRecipe, QuantizeRecipe, Recipe, RuntimeRecipe, StudentRecipe
from tests.captured import capture
from tests.decoders import tiny_decoder
from tests.test_decoder_export import recipe
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

PROMPT = "The return statement leaves the current"
INT8 = {"kv_cache": "int8"}


@pytest.fixture(scope="module")
def bundle(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "b"
    export(recipe(small_decoder_dir, "fp32", **INT8), made)
    moved = tmp_path_factory.mktemp("moved") / "b"
    shutil.move(made, moved)
    return moved


def opened(path: Path) -> Generator:
    generator = load(path)
    assert isinstance(generator, Generator)
    return generator


def test_the_cache_costs_less_than_a_five_hundredth_of_the_perplexity(bundle: Path) -> None:
    manifest, folder = open_bundle(bundle)
    settings = read_settings(DecoderSettings, manifest).generation
    assert settings.kv_dtype == "int8"
    variant = manifest.variant()
    kept = [s for s in (*variant.inputs, *variant.outputs) if s.name.startswith(("past_", "present."))]
    assert len(kept) == 4 * settings.layers
    assert {spec.dtype for spec in kept} == {"int8"}
    report = read_report(folder)
    cost = report.kv_cache
    assert cost is not None
    assert 0.998 <= cost.perplexity_ratio <= 1.002
    assert cost.float_fidelity.perplexity_ratio == pytest.approx(1.0, abs=1e-4)
    assert report.fidelity.mean_kl is not None
    assert report.fidelity.mean_kl > 0, "the cache changes nothing: it is not int8"
    numbers = 2 * settings.layers * settings.kv_heads * settings.head_size
    assert (cost.bytes_per_token, cost.float_bytes_per_token) == (numbers, 4 * numbers)
    assert 8 * 48 < cost.calibration_tokens <= 8 * 64


def test_what_the_tools_say(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle)]) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("KV cache")]
    assert "int8, 256 bytes per token (float32: 1_024)" in line
    assert "perplexity ratio of the cache alone" in line
    assert main(["run", str(bundle), PROMPT, "--raw", "--max-new-tokens", "4", "--temperature", "0"]) == 0
    assert "int8 KV cache of" in capsys.readouterr().err
    assert "| KV cache | int8 |" in (bundle / "README.md").read_text()
    (scales,) = [
        layer for layer in json.loads((bundle / "report.json").read_text())["ops"].items() if "Attention" in layer[0]
    ]
    assert scales == ("GroupQueryAttention", 2)


def test_text_is_that_of_the_graph_from_scratch(bundle: Path) -> None:
    """Token by token over the cache, against the same graph run over the whole text for each token."""
    run = logits_of(open_model(bundle / "model.onnx", 1))
    with opened(bundle) as generator:
        ids = generator.token_ids(PROMPT)
        text = generator.generate(PROMPT, max_new_tokens=20, temperature=0.0)
        assert generator.statistics.bytes_copied == 0
        assert generator.statistics.kv_cache_bytes == (len(ids) + 20) * 256
        for token in text.token_ids:
            last = run(np.array(ids))[-1]
            assert last[token] > last.max() - 0.05  # a half of an int8 step that falls to the other side
            ids.append(token)
        together = generator.generate([PROMPT, "The"], max_new_tokens=20, temperature=0.0)
        assert together[0].token_ids == text.token_ids
        with generator.session() as session:
            first = session.generate(PROMPT, max_new_tokens=8, temperature=0.0)
            assert first.token_ids == text.token_ids[:8]
            again = session.generate(PROMPT + str(first) + " and", max_new_tokens=8, temperature=0.0)
            assert generator.statistics.reused_tokens >= len(generator.token_ids(PROMPT))
        assert again == generator.generate(PROMPT + str(first) + " and", max_new_tokens=8, temperature=0.0)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_beside_quantized_weights(precision: str, small_decoder_dir: Path, tmp_path: Path) -> None:
    made = export(recipe(small_decoder_dir, precision, block_size=32, **INT8), tmp_path / "b")
    cost = made.report.kv_cache
    assert cost is not None
    assert cost.perplexity_ratio <= 1.002
    assert made.report.fidelity.perplexity_ratio == pytest.approx(
        cost.perplexity_ratio * (cost.float_fidelity.perplexity_ratio or 0), rel=1e-5
    )
    with opened(tmp_path / "b") as generator:
        assert generator.generate("The", max_new_tokens=4, temperature=0.0).token_ids


def test_large_weights_are_in_a_data_file(
    small_decoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    for module in ("graph.model", "backends.onnxruntime_cpu.compile"):
        monkeypatch.setattr(f"edgecompress.{module}.EXTERNAL_DATA_BYTES", 100_000)
    export(recipe(small_decoder_dir, "fp32", **INT8), tmp_path / "made")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    assert (tmp_path / "moved" / "model.onnx").stat().st_size < 200_000
    with opened(tmp_path / "moved") as beside, opened(bundle) as inside:
        options = {"max_new_tokens": 8, "temperature": 0.0}
        assert beside.generate(PROMPT, **options) == inside.generate(PROMPT, **options)  # type: ignore[call-overload]


# gemma2: a window shorter than the texts, and soft-caps; gpt_oss: sinks; glm: half of a head rotated; gpt2: learned
# positions, query, key and value packed by the checkpoint.
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt_oss", "partial-rotary", "gpt2"])
def test_every_kind_of_attention_takes_it(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    source = tiny_decoder(tmp_path / "s", name)
    student = load_student(StudentRecipe(source=str(source)))
    graph = lower(capture(student, tmp_path, opset=21), tmp_path)
    session = make_session(graph.path, 1)
    past = {v.name: (v.shape[1], v.shape[3]) for v in session.get_inputs() if v.name.startswith("past_key_values.")}
    texts = [rng.integers(3, 120, size=40) for _ in range(24)]
    places = spread_positions([len(ids) for ids in texts], student.max_length_tokens or 0)
    feeds = [text_feed(ids, past, first_position=place) for ids, place in zip(texts, places, strict=True)]
    small = lower_cache(graph, cache_scales(session, feeds), tmp_path)
    exact, rounded = logits_of(GraphModel(session)), logits_of(open_model(small.path, 1))
    found = DecoderFidelity()
    for _ in range(8):
        ids = rng.integers(3, 120, size=40)
        found.add(exact(ids), rounded(ids), ids[1:])
    fidelity = found.fidelity()
    assert fidelity.mean_kl is not None
    assert 0 < fidelity.mean_kl < 2e-3
    assert fidelity.top1_agreement is not None
    assert fidelity.top1_agreement > 0.95


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "s", "bert")
    asked = Recipe(
        precision="fp32",
        student=StudentRecipe(source=str(source)),
        quantize=QuantizeRecipe(**INT8),  # type: ignore[arg-type]
        runtime=RuntimeRecipe(kernels="none"),
    )
    with pytest.raises(RecipeError, match="--kv-cache is for decoders, but this student's task is"):
        plan(asked)
    assert plan(replace(asked, quantize=QuantizeRecipe())).candidates == ("fp32",)


def test_half_precision_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_decoder(tmp_path / "s", "qwen2")
    assert main(["export", str(source), "--kv-cache", "fp16", "-o", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "no kernel for a float16 cache with float32 activations" in said
    assert "--kv-cache int8" in said
    assert main(["export", str(source), "--kv-cache", "in8", "-o", str(tmp_path / "b")]) == 2
    assert "no KV cache named 'in8'. Did you mean 'int8'?" in capsys.readouterr().err


def test_the_plan_tells_of_it(small_decoder_dir: Path) -> None:
    small, plain = (plan(recipe(small_decoder_dir, "int4", **quantize)) for quantize in (INT8, {}))
    assert [s.description for s in small.stages if s.name == "calibrate"] == [
        "KV cache in int8: per-channel scales from builtin"
    ]
    assert small.estimate.disk_bytes > plain.estimate.disk_bytes
    assert "calibrate" not in {stage.name for stage in plain.stages}


def test_calibration_reaches_over_the_whole_context(
    small_decoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def recorded(session: object, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        kept = list(feeds)
        seen.extend((int(feed["position_ids"].min()), int(feed["position_ids"].max())) for feed in kept)
        return cache_scales(session, kept)  # type: ignore[arg-type]

    monkeypatch.setattr("edgecompress.kinds.decoder.int8_cache.cache_scales", recorded)
    asked = recipe(small_decoder_dir, "fp32", **INT8)
    made = export(replace(asked, calibration=CalibrationRecipe(samples=6, max_length_tokens=16)), tmp_path / "b")
    assert read_settings(DecoderSettings, made.manifest).generation.context_length_tokens == 512
    assert seen[0] == (0, 15)
    assert seen[-1][1] == 511
    assert [first for first, _ in seen] == sorted({first for first, _ in seen})
