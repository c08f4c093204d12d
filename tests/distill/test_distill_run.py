"""A distillation from end to end, on small teachers: what is learned, what is written, what a kill leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from edgecompress.capture.model import Encoder, load_model
from edgecompress.capture.student import load_student
from edgecompress.cli import main
from edgecompress.distill.plan import Plan, make_plan
from edgecompress.distill.run import distill
from edgecompress.distill.trainer import DistillTrainer
from edgecompress.distill.work import WorkFolder
from edgecompress.errors import HostError, InterruptedRunError, OutputError, RecipeError, StudentError, UsageError
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.manifest import file_sha256
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
from tests.distill.lessons import recipe_file, sentence_teacher, sentences
from tests.tiny import tiny_checkpoint

TRAINING = TrainingRecipe(steps=40, batch=8, learning_rate=3e-3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_teacher(tmp_path_factory.mktemp("teachers") / "teacher")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return sentences(tmp_path / "texts.jsonl")


def recipe(**changes: Any) -> DistillRecipe:
    return replace(DistillRecipe(student=NewStudentRecipe(layers=2), training=TRAINING), **changes)


def taught(plan: Plan, output: Path, **options: Any) -> Distillation:
    threads = torch.get_num_threads()
    made = distill(plan, output, threads=1, **options)
    assert torch.get_num_threads() == threads
    return made


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


def test_a_seed_gives_the_same_weights(teacher: Path, texts: Path, tmp_path: Path) -> None:
    again = recipe(training=replace(TRAINING, steps=6, seed=1))
    for name in ("a", "b"):
        taught(make_plan(str(teacher), again, texts), tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    other = recipe(training=replace(TRAINING, steps=6, seed=2))
    taught(make_plan(str(teacher), other, texts), tmp_path / "c")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


KILLED = """
import os, sys
from edgecompress.cli import main
from edgecompress.distill import trainer
before = trainer.DistillTrainer.compute_loss
def compute_loss(self, *args, **named):
    if self.state.global_step == 17:
        os.kill(os.getpid(), 9)
    return before(self, *args, **named)
trainer.DistillTrainer.compute_loss = compute_loss
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("rounding", ["none", "int4-weights"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(
    teacher: Path, texts: Path, tmp_path: Path, rounding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL at step 17 of 30, not at a checkpoint: the weights are bit by bit those of an uninterrupted run."""
    terms = "embedding = 1" if rounding == "none" else "embedding = 1\nhidden = 0.5\nrelations = 0.5"
    text = f"[student]\nlayers = 2\n[loss]\n{terms}\n[training]\nbatch = 8\nsteps = 30\n"
    given = recipe_file(tmp_path / "r.toml", f'{text}rounding = "{rounding}"\nblock_size = 16\n')
    command = ["distill", "--teacher", str(teacher), "--student", str(given), "--data", str(texts), "--threads", "1"]
    arguments = [sys.executable, "-c", KILLED, *command, "-o", str(tmp_path / "s")]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -9
    assert not (tmp_path / "s").exists()
    assert main([*command, "-o", str(tmp_path / "s")]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "s"), "--seed", "5", "--resume"]) == 2
    assert "its recipe changed" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "s"), "--resume"]) == 0
    assert main([*command, "-o", str(tmp_path / "whole")]) == 0
    resumed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("s", "whole"))
    assert resumed == whole
    curves = [json.loads((tmp_path / name / "loss.json").read_text()) for name in ("s", "whole")]
    assert curves[0] == curves[1]
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "s")
    for step, state in ((8, "{}"), (16, '{"glo'), (24, None)):
        folder = work.path / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    last = work.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-8"
    assert [path.name for path in work.path.iterdir()] == ["checkpoint-8"]


@pytest.mark.parametrize(("stop", "left"), [(2, "nothing was left behind"), (17, "up to step 16 is in")])
def test_an_interruption_says_what_is_left(
    teacher: Path, texts: Path, tmp_path: Path, stop: int, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = DistillTrainer.compute_loss

    def compute_loss(self: DistillTrainer, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        return before(self, *arguments, **named)

    monkeypatch.setattr(DistillTrainer, "compute_loss", compute_loss)
    with pytest.raises(InterruptedRunError, match=left) as caught:
        taught(make_plan(str(teacher), recipe(), texts), tmp_path / "s")
    assert bool(list(tmp_path.glob(".*"))) == ("--resume" in caught.value.way_out) == (stop == 17)


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
    with pytest.raises(RecipeError, match="vectors of 16 numbers cannot be those of 32"):
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
    with pytest.raises(RecipeError, match="shows no layers"):
        make_plan(None, DistillRecipe(), data, record)
    data.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "p"}) + "\n")
    with pytest.raises(UsageError, match="prompt 2 has no response"):
        make_plan(None, given, data, record)
    with pytest.raises(RecipeError, match="insides"):
        make_plan(None, replace(given, loss=LossRecipe(logits=1.0)), data, record)


def test_other_tokens_are_named(teacher: Path, texts: Path, tmp_path: Path) -> None:
    other = sentence_teacher(tmp_path / "other")
    content = (teacher / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content.replace('"garden":', '"zebra":'))
    with pytest.raises(StudentError, match=r"different tokenizers: '(garden|zebra)' is (no token|[0-9]+) of") as caught:
        make_plan(str(teacher), recipe(student=NewStudentRecipe(start=str(other))), texts)
    assert "black-box" in caught.value.way_out
    unmarked = json.loads(content) | {"post_processor": None}
    (other / "tokenizer.json").write_text(json.dumps(unmarked))
    with pytest.raises(StudentError, match=r"the same, and .* is split otherwise from token"):
        make_plan(str(teacher), recipe(student=NewStudentRecipe(start=str(other))), texts)


def test_a_teacher_that_does_not_fit_is_refused_beforehand(
    teacher: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.runtime.memory.available_bytes", lambda: 100_000)
    with pytest.raises(HostError, match=r"the teacher, and the student .* takes [0-9_]+ bytes of memory, and 100_000"):
        make_plan(str(teacher), recipe(), texts)


def test_a_loss_that_is_no_number_ends_it(teacher: Path, texts: Path, tmp_path: Path) -> None:
    wild = recipe(training=replace(TRAINING, learning_rate=1e30, warmup=0.0))
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf) at step [2-9]") as caught:
        taught(make_plan(str(teacher), wild, texts), tmp_path / "s")
    assert "learning_rate below 1e+30" in caught.value.way_out
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_what_cannot_be_learned_is_refused(teacher: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no loss 'cross_entropy'"):
        make_plan(str(teacher), recipe(loss=LossRecipe(cross_entropy=1.0)), texts)
    with pytest.raises(RecipeError, match="the teacher has 4"):
        make_plan(str(teacher), recipe(student=NewStudentRecipe(layers=5)), texts)
    with pytest.raises(RecipeError, match="3 relation heads do not divide"):
        taught(make_plan(str(teacher), recipe(loss=LossRecipe(relations=1.0, relation_heads=3)), texts), tmp_path / "s")
    with pytest.raises(RecipeError, match=r"a teacher behind an API|gives no responses"):
        make_plan(str(teacher), recipe(method="black-box"), texts)
    (tmp_path / "s").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        taught(make_plan(str(teacher), recipe(), texts), tmp_path / "s")
    with pytest.raises(UsageError, match="nothing to resume"):
        taught(make_plan(str(teacher), recipe(), texts), tmp_path / "n", resume=True)


def test_minutes_become_steps(teacher: Path, texts: Path, tmp_path: Path) -> None:
    timed = recipe(training=replace(TRAINING, steps=None, minutes=0.01))
    assert taught(make_plan(str(teacher), timed, texts), tmp_path / "s").steps >= 1


def test_a_student_is_exported(teacher: Path, texts: Path, tmp_path: Path) -> None:
    """`export` takes it as it takes any checkpoint."""
    from edgecompress.pipeline import export
    from edgecompress.types.recipe import Recipe, RuntimeRecipe

    taught(make_plan(str(teacher), recipe(training=replace(TRAINING, steps=2)), texts), tmp_path / "s")
    plain = Recipe(precision="fp32", student=StudentRecipe(source=str(tmp_path / "s")), runtime=RuntimeRecipe(kernels="none"))  # fmt: skip  # noqa: E501
    assert export(plain, tmp_path / "b").manifest.task == "sentence-similarity"
