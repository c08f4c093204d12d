"""``--format genai``: a bundle that onnxruntime-genai runs too, which is tested if it is installed."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from edgecompress.cli import main
from edgecompress.errors import RecipeError, StudentError
from edgecompress.export.pipeline import export
from edgecompress.export.plan import plan
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.decoder.genai import genai_files, require_tokenizer
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.lower.last_logits import keep_last_logits
from edgecompress.runtime import load
from edgecompress.runtime.bundle import read_settings
from edgecompress.types.bundle import GenerationSettings, Manifest
from edgecompress.types.recipe import CalibrationRecipe, QualityRecipe, QuantizeRecipe, Recipe, StudentRecipe
from tests.decoders import tiny_decoder
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow


def settings_of(manifest: Manifest) -> GenerationSettings:
    return read_settings(DecoderSettings, manifest).generation


PROMPT = "The return statement leaves the current"
PROMPTS = (PROMPT, "def", "A class is a kind of thing")
NEW_TOKENS = 20


def recipe(source: Path, **changes: Any) -> Recipe:
    """In int4 with float32 inputs: int8 ones are rounded in another way for a row alone than for a row among others."""
    made = Recipe(
        precision="int4",
        format="genai",
        student=StudentRecipe(source=str(source)),
        quantize=QuantizeRecipe(block_size=32, accuracy_level=1),
        calibration=CalibrationRecipe(samples=8, max_length_tokens=64),
        quality=QualityRecipe(samples=8, max_kl=10.0, max_perplexity_ratio=10.0),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def folder(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("genai") / "b"
    export(recipe(small_decoder_dir), output)
    return output


@pytest.fixture(scope="module")
def genai() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its bindings were made by SWIG's and pybind's ways of old
        module: ModuleType = pytest.importorskip("onnxruntime_genai")
    return module


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_the_configuration_is_the_graph_s(folder: Path) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    decoder, said = config["model"]["decoder"], config["model"]
    graph = ir.load(folder / decoder["filename"]).graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    names = [name for key, name in decoder["inputs"].items() if not key.startswith("past_")]
    present = [decoder["outputs"]["logits"]]
    for layer in range(decoder["num_hidden_layers"]):
        for side in ("key", "value"):
            names.append(decoder["inputs"][f"past_{side}_names"] % layer)
            present.append(decoder["outputs"][f"present_{side}_names"] % layer)
            shape = inputs[names[-1]].shape
            assert shape is not None
            assert (shape[1], shape[3]) == (decoder["num_key_value_heads"], decoder["head_size"])
    assert sorted(names) == sorted(inputs)
    assert sorted(present) == sorted(outputs)
    logits = outputs["logits"].shape
    assert logits is not None
    assert list(logits)[1:] == [1, said["vocab_size"]]
    manifest, _ = open_bundle(folder)
    settings = settings_of(manifest)
    assert settings is not None
    assert said["eos_token_id"] == list(settings.eos_token_ids)
    assert (said["bos_token_id"], said["pad_token_id"]) == (settings.bos_token_id, settings.pad_token_id)
    assert said["context_length"] == config["search"]["max_length"] == settings.context_length_tokens
    assert decoder["session_options"]["intra_op_num_threads"] == manifest.variant().runtime.threads
    assert config["search"]["past_present_share_buffer"] is True


def test_it_is_a_bundle_and_its_weights_are_there_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fidelity"]["perplexity_ratio"] == pytest.approx(1.0, abs=0.25)
    assert (folder / "genai.onnx").stat().st_size < (folder / "model.onnx.data").stat().st_size / 2
    with load(folder, threads=1) as generator:
        assert isinstance(generator, Generator)
        assert generator.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids


def test_each_row_keeps_its_own_last_logits(folder: Path, rng: np.random.Generator) -> None:
    """Prefill of rows of unequal length, a step of all of them, and a chunk behind a past: against asking by position.

    The other rows' tokens are padding on the right, as onnxruntime-genai gives them.
    """
    ours, theirs = session(folder / "model.onnx"), session(folder / "genai.onnx")
    past = {v.name: v.shape for v in ours.get_inputs() if v.name.startswith("past_")}
    lengths, tokens = np.array([7, 1, 4]), 7
    ids = rng.integers(3, 400, size=(3, tokens + 1))

    def feed(rows: slice, new: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: list[Any]) -> dict[str, Any]:
        feeds = {"input_ids": new[rows], "attention_mask": mask[rows], "position_ids": positions[rows]}
        return feeds | {name: value[rows] for name, value in zip(past, cache, strict=True)}

    def both(rows: slice, wanted: np.ndarray, feeds: dict[str, Any]) -> list[Any]:
        logits, *cache = theirs.run(None, feeds)
        expected = ours.run(["logits"], feeds | {"logits_positions": wanted[rows]})[0]
        for row in range(len(logits)):
            which = row if len(expected[row]) > 1 else 0
            np.testing.assert_allclose(logits[row, 0], expected[row, which], rtol=1e-5, atol=1e-5)
        assert logits.shape[1] == 1
        return cache

    empty = [np.zeros((3, shape[1], tokens + 1, shape[3]), dtype=np.float32) for shape in past.values()]
    mask = (np.arange(tokens)[None] < lengths[:, None]).astype(np.int64)
    positions = np.tile(np.arange(tokens), (3, 1))
    everyone = slice(0, 3)
    cache = both(everyone, lengths - 1, feed(everyone, ids[:, :tokens], mask, positions, empty))
    longer = np.concatenate([mask, np.ones((3, 1), dtype=np.int64)], axis=1)
    both(everyone, np.array([0]), feed(everyone, ids[:, -1:], longer, lengths[:, None], cache))
    one = slice(0, 1)
    ones = np.ones((3, 3), dtype=np.int64)
    cache = both(one, np.array([2]), feed(one, ids[:, :3], ones, positions[:, :3], empty))
    cache = [np.repeat(value, 3, axis=0) for value in cache]
    both(one, np.array([3]), feed(one, ids[:, 3:7], np.ones((3, 7), dtype=np.int64), positions[:, 3:7], cache))


def test_what_genai_cannot_run_is_refused(tmp_path: Path, folder: Path) -> None:
    encoder = tiny_checkpoint(tmp_path / "bert", "bert")
    with pytest.raises(RecipeError, match="runs decoders only"):
        plan(recipe(encoder, precision="auto"))
    words = tiny_decoder(tmp_path / "words", "qwen2")
    with pytest.raises(StudentError, match="does not support WordPiece tokenizers"):
        export(recipe(words), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    manifest, _ = open_bundle(folder)
    model = ir.load(folder / "model.onnx")
    model.graph.inputs.append(ir.Value(name="extra", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)))
    ir.save(ir.external_data.load_to_model(model), tmp_path / "model.onnx")
    with pytest.raises(RecipeError, match="does not support the input 'extra'"):
        genai_files(
            tmp_path / "model.onnx",
            settings_of(manifest),
            manifest.variant().runtime,
            folder / "tokenizer.json",
        )
    with pytest.raises(RecipeError, match="no input_ids"):
        keep_last_logits(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))


def test_an_unknown_format_is_refused(small_decoder_dir: Path) -> None:
    with pytest.raises(RecipeError, match="no format named 'gena'"):
        plan(recipe(small_decoder_dir, format="gena"))


def test_the_tokenizer_s_settings_are_those_it_encodes_by(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    manifest, _ = open_bundle(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert config["tokenizer_class"] == require_tokenizer(folder / "tokenizer.json")
    assert tokenizer.token_to_id(config["bos_token"]) == settings_of(manifest).bos_token_id
    assert tokenizer.token_to_id(config["eos_token"]) == settings_of(manifest).eos_token_ids[0]
    assert config["add_bos_token"] is (tokenizer.encode("a").ids[0] == settings_of(manifest).bos_token_id)


def generated(genai: ModuleType, model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The greedy tokens that onnxruntime-genai gives, rows of unequal length padded as its own tokenizer pads them."""
    longest = max(len(ids) for ids in prompts)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=longest + count, batch_size=len(prompts), do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([ids + [0] * (longest - len(ids)) for ids in prompts], dtype=np.int32))
    rows: list[list[int]] = [[] for _ in prompts]
    while not generator.is_done() and len(rows[0]) < count:
        generator.generate_next_token()
        for row, token in zip(rows, generator.get_next_tokens(), strict=True):
            row.append(int(token))
    return rows


def test_onnxruntime_genai_gives_our_tokens(genai: ModuleType, folder: Path) -> None:
    model = genai.Model(str(folder))
    with load(folder) as generator:
        assert isinstance(generator, Generator)
        prompts = [list(generator.token_ids(text)) for text in PROMPTS]
        ours = [generator.generate(ids, max_new_tokens=NEW_TOKENS, temperature=0).token_ids for ids in prompts]
    alone = [generated(genai, model, [ids], NEW_TOKENS)[0] for ids in prompts]
    together = generated(genai, model, prompts, NEW_TOKENS)
    for expected, one, row in zip(ours, alone, together, strict=True):
        assert len(expected) > 1
        assert tuple(one[: len(expected)]) == expected
        assert tuple(row[: len(expected)]) == expected


def test_onnxruntime_genai_goes_on_behind_a_rewind(genai: ModuleType, folder: Path) -> None:
    model = genai.Model(str(folder))
    with load(folder) as generator:
        assert isinstance(generator, Generator)
        ids = list(generator.token_ids(PROMPT))
        expected = generator.generate(ids, max_new_tokens=4, temperature=0).token_ids
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=64, do_sample=False)
    made = genai.Generator(model, params)
    made.append_tokens(np.array([ids], dtype=np.int32))
    for _ in range(3):
        made.generate_next_token()
    made.rewind_to(3)
    made.append_tokens(np.array([ids[3:]], dtype=np.int32))  # a chunk of several tokens behind a past
    found = []
    for _ in expected:
        made.generate_next_token()
        found.append(int(made.get_next_tokens()[0]))
    assert tuple(found) == expected


def test_onnxruntime_genai_reads_the_tokenizer_and_the_template(genai: ModuleType, folder: Path) -> None:
    theirs = genai.Tokenizer(genai.Model(str(folder)))
    theirs.update_options(add_special_tokens="true")
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*PROMPTS, "Grüße, 世界! 🎉\n\n  def f(x):\treturn x**2 # 123456", "  a   b"):
        assert theirs.encode(text).tolist() == ours.encode(text).ids
        assert theirs.decode(theirs.encode(text)) == ours.decode(ours.encode(text).ids)
    with load(folder) as generator:
        assert isinstance(generator, Generator)
        messages = [{"role": "user", "content": "Why?"}]
        expected = list(generator.token_ids(messages))
    theirs.update_options(add_special_tokens="false")
    text = theirs.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    assert theirs.encode(text).tolist() == expected
