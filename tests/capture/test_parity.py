"""The captured graph matches eager PyTorch for every supported architecture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from edgecompress.capture.model import load_model
from edgecompress.errors import StudentError
from edgecompress.kinds.architectures import architectures
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder import capture as text
from edgecompress.kinds.vision import capture as images
from edgecompress.lower.microsoft import lower
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Student
from tests.captured import capture
from tests.tiny import CONFIGS, tiny_checkpoint

pytestmark = pytest.mark.slow

TEXT = ["bert", "distilbert", "roberta", "xlm-roberta", "electra", "albert", "camembert", "modernbert", "nomic_bert"]
IMAGE = ["vit", "deit", "dinov2"]


def largest_difference(student: Student, folder: Path, shapes: list[tuple[int, int]]) -> tuple[float, str]:
    """(largest difference at real positions over all shapes, how attention was captured)."""
    captured = capture(student, folder, opset=21)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(lower(captured, folder).path), options, providers=["CPUExecutionProvider"])
    loaded = load_model(student, "eager")
    of_texts = student.kind == "encoder"
    model = (text.Encoder if of_texts else images.ImageEncoder)(loaded, student).eval()
    worst = 0.0
    for batch, tokens in shapes:
        if of_texts:
            inputs = text.example_inputs(student, loaded, batch, tokens, seed=tokens)
        else:
            inputs = images.example_inputs(loaded, batch, seed=tokens)
        with torch.no_grad():
            expected = [output.numpy() for output in model(*inputs.values())]
        outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        keep = inputs["attention_mask"].numpy().astype(bool) if "attention_mask" in inputs else None
        for a, b in zip(expected, outputs, strict=True):
            assert a.shape == b.shape
            difference = np.abs(a - b)
            if keep is not None and a.shape[:2] == keep.shape:
                difference = difference[keep]
            worst = max(worst, float(difference.max()))
    return worst, ir.load(captured.path).metadata_props["edgecompress.attention"]


@pytest.mark.parametrize("model_type", TEXT)
def test_text_architectures_match_eager(model_type: str, tmp_path: Path) -> None:
    """Lengths reach past ModernBERT's window of 4 on each side; the second row of a batch is padded."""
    student = load_student(StudentRecipe(source=str(tiny_checkpoint(tmp_path, model_type))))
    worst, attention = largest_difference(student, tmp_path, [(1, 3), (2, 16), (3, 61), (2, 100)])
    assert attention == "one-op"
    assert worst <= 1e-4


@pytest.mark.parametrize("model_type", IMAGE)
def test_image_architectures_match_eager(model_type: str, tmp_path: Path) -> None:
    student = load_student(StudentRecipe(source=str(tiny_checkpoint(tmp_path, model_type))))
    worst, attention = largest_difference(student, tmp_path, [(1, 0), (3, 0)])
    assert attention == "one-op"
    assert worst <= 1e-4


def test_deberta_keeps_its_own_attention(tmp_path: Path) -> None:
    student = load_student(StudentRecipe(source=str(tiny_checkpoint(tmp_path, "deberta-v2"))))
    worst, attention = largest_difference(student, tmp_path, [(1, 3), (2, 40)])
    assert attention == "plain"
    assert worst <= 1e-4


@pytest.mark.parametrize(
    ("auto", "task"),
    [
        ("AutoModelForSequenceClassification", "text-classification"),
        ("AutoModelForTokenClassification", "token-classification"),
        ("AutoModelForMaskedLM", "fill-mask"),
        ("AutoModelForQuestionAnswering", "question-answering"),
    ],
)
def test_heads_match_eager(auto: str, task: str, tmp_path: Path) -> None:
    student = load_student(StudentRecipe(source=str(tiny_checkpoint(tmp_path, "bert", auto))))
    assert student.task == task
    worst, _ = largest_difference(student, tmp_path, [(1, 5), (2, 30)])
    assert worst <= 1e-4


def test_the_real_student_matches_eager(minilm_dir: Path, tmp_path: Path) -> None:
    student = load_student(StudentRecipe(source=str(minilm_dir)))
    assert student.task == "sentence-similarity"
    worst, _ = largest_difference(student, tmp_path, [(1, 2), (1, 128), (3, 37), (2, 256), (8, 16)])
    assert worst <= 1e-4


def test_attention_is_one_op_per_layer_and_leaves_no_paths(minilm_dir: Path, tmp_path: Path) -> None:
    graph = capture(load_student(StudentRecipe(source=str(minilm_dir))), tmp_path, opset=21)
    model = ir.load(graph.path)
    assert sum(node.op_type == "Attention" and node.domain == "edgecompress" for node in model.graph) == 6
    assert not any(node.metadata_props for node in model.graph)
    assert model.metadata_props["edgecompress.architecture"] == "bert"
    assert str(minilm_dir).encode() not in graph.path.read_bytes()


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    with pytest.raises(StudentError, match="encoder-decoder"):
        load_student(StudentRecipe(source=str(folder)))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["AnyForConditionalGeneration"]}))
    with pytest.raises(StudentError, match="more than text"):
        load_student(StudentRecipe(source=str(folder)))


def test_a_decoder_without_its_head_is_refused(tmp_path: Path) -> None:
    student = load_student(StudentRecipe(source=str(tiny_checkpoint(tmp_path, "qwen2"))))
    assert student.task == "feature-extraction"
    with pytest.raises(StudentError, match="causally"):
        capture(student, tmp_path, opset=21)


def test_the_table_of_encoders_lists_what_is_tested_here() -> None:
    """mpnet's refusal is in tests/cli/test_cli.py: it needs the reference."""
    encoders = [a for kind, a in architectures().values() if kind in ("encoder", "vision")]
    assert {a.name for a in encoders if a.refused is None} == {*TEXT, *IMAGE, "deberta-v2"}
    assert {a.name for a in encoders if a.refused is not None} == {"mpnet"}


def test_every_tiny_architecture_is_tested() -> None:
    assert set(CONFIGS) == {*TEXT, *IMAGE, "deberta-v2", "mpnet", "qwen2"}
