"""What cannot be taught is refused in one sentence, before anything is trained where that can be known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompress.distill.plan import make_plan
from edgecompress.errors import HostError, OutputError, RecipeError, StudentError, UsageError
from edgecompress.types.distill import (
    LossRecipe,
    NewStudentRecipe,
)
from tests.distill.lessons import TRAINING, recipe, sentence_teacher, taught


def test_other_tokens_are_named(teacher: Path, texts: Path, tmp_path: Path) -> None:
    other = sentence_teacher(tmp_path / "other")
    content = (teacher / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content.replace('"garden":', '"zebra":'))
    with pytest.raises(
        StudentError, match=r"different tokenizers: '(garden|zebra)' is (missing|token [0-9]+) in the"
    ) as caught:
        make_plan(str(teacher), recipe(student=NewStudentRecipe(start=str(other))), texts)
    assert "black-box" in caught.value.hint
    unmarked = json.loads(content) | {"post_processor": None}
    (other / "tokenizer.json").write_text(json.dumps(unmarked))
    with pytest.raises(StudentError, match=r"the same, but .* is split differently from token"):
        make_plan(str(teacher), recipe(student=NewStudentRecipe(start=str(other))), texts)


def test_a_teacher_that_does_not_fit_is_refused_beforehand(
    teacher: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.runtime.memory.available_bytes", lambda: 100_000)
    with pytest.raises(
        HostError, match=r"training this student with its teacher takes [0-9_]+ bytes of memory, and 100_000"
    ):
        make_plan(str(teacher), recipe(), texts)


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_it(teacher: Path, texts: Path, tmp_path: Path) -> None:
    wild = recipe(training=replace(TRAINING, learning_rate=1e30, warmup=0.0))
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf) at step [2-9]") as caught:
        taught(make_plan(str(teacher), wild, texts), tmp_path / "s")
    assert "learning_rate below 1e+30" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_what_cannot_be_learned_is_refused(teacher: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no loss 'cross_entropy'"):
        make_plan(str(teacher), recipe(loss=LossRecipe(cross_entropy=1.0)), texts)
    with pytest.raises(RecipeError, match="the teacher has 4"):
        make_plan(str(teacher), recipe(student=NewStudentRecipe(layers=5)), texts)
    with pytest.raises(RecipeError, match="3 relation heads do not divide"):
        taught(make_plan(str(teacher), recipe(loss=LossRecipe(relations=1.0, relation_heads=3)), texts), tmp_path / "s")
    with pytest.raises(RecipeError, match="cannot learn from responses"):
        make_plan(str(teacher), recipe(method="black-box"), texts)
    (tmp_path / "s").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        taught(make_plan(str(teacher), recipe(), texts), tmp_path / "s")
    with pytest.raises(UsageError, match="nothing to resume"):
        taught(make_plan(str(teacher), recipe(), texts), tmp_path / "n", resume=True)
