"""What quantization costs a trained decoder, measured on the exported graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

from edgecompress.graph.sessions import open_model
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder import metric
from edgecompress.kinds.decoder.check import logits_of, text_feed
from edgecompress.kinds.decoder.metric import DecoderFidelity, shortfall
from edgecompress.lower.microsoft import lower, lower_model
from edgecompress.quantize.stage import Calibration, quantize
from edgecompress.quantize.texts import load_texts
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import CalibrationRecipe, QualityRecipe, QuantizeRecipe, Recipe, StudentRecipe
from edgecompress.types.report import Fidelity
from tests.captured import capture

pytestmark = pytest.mark.slow

TOKENS = 64
Ids = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Trained:
    captured: Graph
    calibration: list[Ids]
    held_out: list[Ids]
    reference: list[np.ndarray]  # logits of the float32 graph
    past: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def trained(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("captured")
    student = load_student(StudentRecipe(source=str(small_decoder_dir)))
    captured = capture(student, folder, opset=21)
    texts = load_texts(CalibrationRecipe(), 128)
    tokenizer = Tokenizer.from_file(str(small_decoder_dir / "tokenizer.json"))

    def pieces(chosen: tuple[str, ...]) -> list[Ids]:
        stream = tokenizer.encode("\n\n".join(chosen)).ids
        return [np.array(stream[i : i + TOKENS]) for i in range(0, len(stream) - TOKENS, TOKENS)][:64]

    held_out = pieces(texts.held_out)
    run = logits_of(open_model(lower(captured, folder).path, 1))
    past = {
        v.name or "": (int(str(v.shape[1])), int(str(v.shape[3])))  # type: ignore[index]
        for v in ir.load(captured.path).graph.inputs
        if (v.name or "").startswith("past_key_values.")
    }
    return Trained(
        captured=captured,
        calibration=pieces(texts.calibration),
        held_out=held_out,
        reference=[run(ids) for ids in held_out],
        past=past,
    )


@pytest.fixture(scope="module")
def fidelity_of(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fidelity]:
    def measure(precision: str, **options: object) -> Fidelity:
        folder = tmp_path_factory.mktemp("quantized")
        quantized = quantize(
            trained.captured,
            precision,
            Recipe(quantize=QuantizeRecipe(**options)),  # type: ignore[arg-type]
            folder,
            calibration=Calibration(
                batches=lambda: [text_feed(ids, trained.past) for ids in trained.calibration],
                make_runnable=lower_model,
            ),
        )
        run = logits_of(open_model(lower(quantized, folder).path, 1))
        pairs = zip(trained.reference, trained.held_out, strict=True)
        return metric.measure((expected, run(ids), ids) for expected, ids in pairs)

    return measure


def test_the_decoder_has_learned_something(trained: Trained) -> None:
    found = DecoderFidelity()
    for logits, ids in zip(trained.reference, trained.held_out, strict=True):
        found.add(logits, logits, ids[1:])
    counts = np.bincount(np.concatenate(trained.held_out), minlength=512) / sum(map(len, trained.held_out))
    by_frequency_alone = np.exp(-(counts[counts > 0] * np.log(counts[counts > 0])).sum())
    assert found.reference_perplexity < 0.6 * by_frequency_alone


def test_transformers_reads_the_checkpoint(small_decoder_dir: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(small_decoder_dir)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|begin|><|user|>Why?<|assistant|>"
    assert tokenizer("Why?")["input_ids"][0] == tokenizer.bos_token_id
    config = json.loads((small_decoder_dir / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert tokenizer.decode(tokenizer("naïve – 你好")["input_ids"], skip_special_tokens=True) == "naïve – 你好"


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_weights_cost_almost_nothing(fidelity_of: Callable[..., Fidelity], symmetric: bool) -> None:
    found = fidelity_of("int8-weights", symmetric=symmetric, block_size=128)
    assert found.perplexity_ratio is not None
    assert found.perplexity_ratio <= 1.002
    assert shortfall(found, QualityRecipe()) is None


def test_int4_weights_are_within_the_budget_and_calibration_pays(fidelity_of: Callable[..., Fidelity]) -> None:
    rounded = fidelity_of("int4-weights", method="rtn", block_size=128)
    calibrated = fidelity_of("int4-weights", method="gptq", block_size=128)
    assert calibrated.perplexity_ratio is not None
    assert calibrated.perplexity_ratio <= 1.03
    assert calibrated.mean_kl is not None
    assert rounded.mean_kl is not None
    assert calibrated.mean_kl < 0.75 * rounded.mean_kl
    assert shortfall(calibrated, QualityRecipe()) is None


def test_a_head_with_more_bits_is_more_accurate(fidelity_of: Callable[..., Fidelity]) -> None:
    found = [fidelity_of("int4-weights", method="rtn", head_bits=bits, embedding_bits=bits) for bits in (4, 8)]
    assert found[1].mean_kl is not None
    assert found[0].mean_kl is not None
    assert found[1].mean_kl < found[0].mean_kl
