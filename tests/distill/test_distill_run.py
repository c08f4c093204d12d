"""A distillation from end to end, on small teachers: what is learned, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from edgecompress.capture.checkpoint import hashes
from edgecompress.capture.model import load_model
from edgecompress.distill.objective import weights_of
from edgecompress.distill.plan import make_plan
from edgecompress.errors import RecipeError, UsageError
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.manifest import file_sha256
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder.capture import Encoder
from edgecompress.lineage.card import read_card
from edgecompress.types.distill import (
    Distillation,
    DistillRecipe,
    LossRecipe,
    NewStudentRecipe,
    TeacherRecord,
    TrainingRecipe,
)
from edgecompress.types.provenance import ProvenanceRecipe
from edgecompress.types.recipe import StudentRecipe
from tests.distill.lessons import TRAINING, recipe, taught
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def embed(folder: Path, texts: list[str]) -> torch.Tensor:
    from edgecompress.distill.tokenizers import load_tokenizer

    student = load_student(StudentRecipe(source=str(folder)))
    encoder = Encoder(load_model(student, "sdpa"), student).eval()
    batch = load_tokenizer(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(batch["input_ids"], batch["attention_mask"])[0]


def test_a_student_comes_nearer_to_its_teacher(teacher: Path, texts: Path, tmp_path: Path) -> None:
    declared = ProvenanceRecipe(teacher="ours", status="permitted")
    plan = make_plan(str(teacher), recipe(provenance=declared), texts)
    shown: list[str] = []
    made = taught(plan, tmp_path / "s", show=shown.append)
    held_out = ["the dog sat on the price of bread", "a cat ran to paris", "the capital is a garden"]
    truncated = recipe(training=replace(TRAINING, steps=1, learning_rate=1e-9))
    taught(make_plan(str(teacher), truncated, texts), tmp_path / "cut")
    far = embed(teacher, held_out)
    learned, cut = ((embed(tmp_path / name, held_out) * far).sum(1).mean().item() for name in ("s", "cut"))
    assert learned > cut + 0.1
    assert any("step 40 of 40: loss 0." in line and "left" in line for line in shown)

    record = from_jsonable(Distillation, json.loads((tmp_path / "s" / "distillation.json").read_text()))
    assert record == made
    assert record.weights == {"model.safetensors": file_sha256(tmp_path / "s" / "model.safetensors")}
    assert record.teacher.files["model.safetensors"] == file_sha256(teacher / "model.safetensors")
    assert (record.method, record.steps, record.seed) == ("white-box", 40, 0)
    assert (record.teacher.licence, record.teacher.base_model) == ("apache-2.0", "somebody/base")
    assert record.data.sha256 == file_sha256(texts)
    assert record.data.examples == len(plan.examples)
    assert record.provenance == declared
    card = yaml.safe_load((tmp_path / "s" / "README.md").read_text().split("---")[1])
    assert (card["license"], card["base_model"]) == ("apache-2.0", "teacher")
    assert "datasets" not in card
    points = json.loads((tmp_path / "s" / "loss.json").read_text())["points"]
    assert points[-1]["step"] == 40
    assert points[-1]["loss"] < points[0]["loss"] / 2
    assert "<svg" in (tmp_path / "s" / "loss.svg").read_text()
    assert (tmp_path / "s" / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "s", "texts.jsonl"]


def test_a_card_without_licence_stays_without(texts: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "t", "bert", "AutoModelForSequenceClassification")
    made = taught(make_plan(str(folder), recipe(student=NewStudentRecipe(layers=1)), texts), tmp_path / "s")
    assert made.teacher.licence is None
    assert "license" not in yaml.safe_load((tmp_path / "s" / "README.md").read_text().split("---")[1])


def test_terms_of_every_kind_are_learned_together(teacher: Path, texts: Path, tmp_path: Path) -> None:
    loss = LossRecipe(embedding=1.0, similarity=1.0, hidden=0.5, relations=0.5, distance="mse")
    taught(make_plan(str(teacher), recipe(loss=loss), texts), tmp_path / "s")
    points = json.loads((tmp_path / "s" / "loss.json").read_text())["points"]
    assert set(points[0]["terms"]) == {"embedding", "similarity", "hidden", "relations"}
    for name in points[0]["terms"]:
        assert points[-1]["terms"][name] < points[0]["terms"][name], name
    total = sum(w * points[3]["terms"][n] for n, w in (("embedding", 1), ("similarity", 1), ("hidden", 0.5), ("relations", 0.5)))  # fmt: skip  # noqa: E501
    np.testing.assert_allclose(points[3]["loss"], total, rtol=1e-4)


def test_a_narrower_student_learns_states_through_a_projection_that_it_does_not_ship(
    teacher: Path, texts: Path, tmp_path: Path
) -> None:
    narrow = NewStudentRecipe(hidden=16, layers=2)
    loss = LossRecipe(hidden=1.0, relations=1.0, similarity=1.0)
    taught(make_plan(str(teacher), recipe(student=narrow, loss=loss), texts), tmp_path / "s")
    assert not [name for name in weights(tmp_path / "s") if "projection" in name]
    assert "recording" not in (tmp_path / "s" / "config.json").read_text()
    assert json.loads((tmp_path / "s" / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 16
    assert embed(tmp_path / "s", ["the cat"]).shape == (1, 16)
    with pytest.raises(RecipeError, match="vectors have width 16, the teacher's 32"):
        taught(make_plan(str(teacher), recipe(student=narrow), texts), tmp_path / "e")
    assert not list(tmp_path.glob(".*"))


def test_a_decoder_learns_from_logits(small_decoder_dir: Path, tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in list(topics.values())[:20]))
    training = TrainingRecipe(steps=30, batch=4, max_length_tokens=64)
    given = DistillRecipe(student=NewStudentRecipe(layers=1), training=training)
    taught(make_plan(str(small_decoder_dir), given, data), tmp_path / "s")
    points = json.loads((tmp_path / "s" / "loss.json").read_text())["points"]
    assert points[-1]["terms"]["logits"] < points[0]["terms"]["logits"] / 2
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert (config["num_hidden_layers"], len(config["layer_types"])) == (1, 1)
    assert (tmp_path / "s" / "generation_config.json").exists()
    assert "chat_template" in (tmp_path / "s" / "tokenizer_config.json").read_text()
    assert load_student(StudentRecipe(source=str(tmp_path / "s"))).task == "text-generation"


def test_a_decoder_under_rounding_learns_slowly_and_from_states_too(small_decoder_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "some words to learn from"}\n')
    start = NewStudentRecipe(start=str(small_decoder_dir))

    def chosen(rounding: str) -> tuple[float | None, dict[str, float]]:
        given = DistillRecipe(student=start, training=TrainingRecipe(rounding=rounding))
        plan = make_plan(str(small_decoder_dir), given, data)
        return plan.recipe.training.learning_rate, weights_of(plan.recipe.loss)

    assert chosen("none") == (1e-4, {"logits": 1.0})
    assert chosen("int4-weights") == (2e-5, {"logits": 1.0, "hidden": 1.0})


def test_a_black_box_is_learned_from_by_its_responses(small_decoder_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"what is number {n}", "response": f"it is the number {n}, and no other"} for n in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = NewStudentRecipe(start=str(small_decoder_dir))
    given = DistillRecipe(student=start, training=TrainingRecipe(steps=30, batch=8, learning_rate=3e-3))
    record = TeacherRecord(kind="endpoint", name="big", endpoint="https://api.example/v1")
    made = taught(make_plan(None, given, data, record), tmp_path / "s")
    points = json.loads((tmp_path / "s" / "loss.json").read_text())["points"]
    assert points[-1]["loss"] < points[0]["loss"] / 2
    assert (made.method, made.teacher) == ("black-box", record)
    assert made.start is not None
    assert (made.start.name, made.start.files) == (small_decoder_dir.name, hashes(small_decoder_dir))
    front = read_card(tmp_path / "s").front
    assert (front["base_model"], front.get("license")) == (small_decoder_dir.name, made.start.licence)
    with pytest.raises(RecipeError, match="has no layers to start a student from"):
        make_plan(None, DistillRecipe(), data, record)
    data.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "p"}) + "\n")
    with pytest.raises(UsageError, match=r"prompt 2 of pairs\.jsonl has no response"):
        make_plan(None, given, data, record)
    with pytest.raises(RecipeError, match="internals"):
        make_plan(None, replace(given, loss=LossRecipe(logits=1.0)), data, record)


def test_minutes_become_steps(teacher: Path, texts: Path, tmp_path: Path) -> None:
    timed = recipe(training=replace(TRAINING, steps=None, minutes=0.01))
    assert taught(make_plan(str(teacher), timed, texts), tmp_path / "s").steps >= 1


def test_a_student_is_exported(teacher: Path, texts: Path, tmp_path: Path) -> None:
    """`export` takes it as it takes any checkpoint."""
    from edgecompress.export.pipeline import export
    from edgecompress.types.recipe import Recipe, RuntimeRecipe

    taught(make_plan(str(teacher), recipe(training=replace(TRAINING, steps=2)), texts), tmp_path / "s")
    plain = Recipe(precision="fp32", student=StudentRecipe(source=str(tmp_path / "s")), runtime=RuntimeRecipe(kernels="none"))  # fmt: skip  # noqa: E501
    assert export(plain, tmp_path / "b").manifest.task == "sentence-similarity"
