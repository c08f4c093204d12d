"""What the student starts as: exactly the layers of the teacher that were asked for, in a checkpoint that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from edgecompress.distill.shapes import evenly_spread, keep_layers, make_student, resolve, taught_by
from edgecompress.errors import RecipeError
from edgecompress.types.distill import NewStudentRecipe
from edgecompress.types.student import Student
from tests.tiny import tiny_checkpoint

DESCRIBED = Student(source="", path=Path(), revision=None, architecture="x", task="", max_length_tokens=1)


def test_layers_are_spread_as_distilberts() -> None:
    assert evenly_spread(6, 12) == (0, 2, 4, 7, 9, 11)
    assert evenly_spread(1, 6) == (5,)
    assert evenly_spread(4, 4) == (0, 1, 2, 3)
    assert taught_by(3, 6) == (1, 3, 5)
    assert taught_by(2, 2) == (0, 1)


def test_what_is_not_said_is_half_of_the_teacher() -> None:
    assert resolve(NewStudentRecipe(), 12).layers == (0, 2, 4, 7, 9, 11)
    assert resolve(NewStudentRecipe(layers=(1, 3)), 4).layers == (1, 3)
    assert resolve(NewStudentRecipe(hidden=16), 4).layers == 4
    assert resolve(NewStudentRecipe(start="folder"), 4).layers is None


@pytest.mark.parametrize("layers", [7, (0, 6)])
def test_layers_beyond_the_teachers_are_refused(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="the teacher has 6") as caught:
        resolve(NewStudentRecipe(layers=layers), 6)
    assert "0 to 5" in caught.value.hint


@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "roberta", "modernbert", "nomic_bert", "qwen2", "mpnet"]
)
def test_a_student_is_the_layers_that_were_kept(architecture: str, tmp_path: Path) -> None:
    """Its weights are those of the teacher's layers, and it survives its own checkpoint."""
    count = {"n_layers": 4} if architecture == "distilbert" else {"num_hidden_layers": 4}
    tiny_checkpoint(tmp_path / "t", architecture, **count)
    teacher = transformers.AutoModel.from_pretrained(tmp_path / "t").eval()
    student = keep_layers(teacher, (0, 2), architecture)
    ids = torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = student(input_ids=ids).last_hidden_state
        student.save_pretrained(tmp_path / "s")
        loaded = transformers.AutoModel.from_pretrained(tmp_path / "s").eval()
        assert torch.equal(loaded(input_ids=ids).last_hidden_state, mine)
    assert loaded.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 4
    own = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, own[re.sub(r"(layers?)\.1\.", r"\1.2.", name, count=1)]), name


def test_a_stack_of_shared_layers_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "albert")
    with pytest.raises(RecipeError, match="'albert' cannot be removed"):
        keep_layers(transformers.AutoModel.from_pretrained(tmp_path), (0,), "albert")


def test_a_smaller_one_of_the_same_kind(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "qwen2", "AutoModelForCausalLM", num_hidden_layers=3)
    teacher = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    recipe = resolve(NewStudentRecipe(hidden=16, layers=2, intermediate=24, heads=2, kv_heads=1), 3)
    student = make_student(recipe, teacher, DESCRIBED, seed=1)
    again = make_student(recipe, teacher, DESCRIBED, seed=1)
    config = student.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (16, 2, 24)
    assert len(config.layer_types) == 2
    assert config.vocab_size == teacher.config.vocab_size
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert student(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 120)
    with pytest.raises(RecipeError, match="4 heads do not divide a width of 18"):
        make_student(resolve(NewStudentRecipe(hidden=18), 3), teacher, DESCRIBED, seed=1)
    with pytest.raises(RecipeError, match="2 key-value heads do not divide 3 heads"):
        make_student(resolve(NewStudentRecipe(hidden=18, heads=3), 3), teacher, DESCRIBED, seed=1)
