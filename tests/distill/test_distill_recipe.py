"""A recipe of two lines does; one that contradicts itself is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.distill.objective import resolve_loss, weights_of
from edgecompress.errors import RecipeError
from edgecompress.formats.distill_recipe import read_distill_recipe
from edgecompress.formats.recipe import recipe_toml
from edgecompress.kinds.decoder import distill as decoder
from edgecompress.kinds.encoder import distill as encoder
from edgecompress.types.distill import DistillRecipe, LossRecipe, NewStudentRecipe


def read(folder: Path, text: str) -> DistillRecipe:
    (folder / "r.toml").write_text(text)
    return read_distill_recipe(folder / "r.toml")


def test_two_lines_do(tmp_path: Path) -> None:
    recipe = read(tmp_path, "[student]\nlayers = 3\n")
    assert recipe == DistillRecipe(student=NewStudentRecipe(layers=3))
    assert read(tmp_path, recipe_toml(recipe)) == recipe
    assert read(tmp_path, "[student]\nlayers = [0, 4]\n").student.layers == (0, 4)
    declared = read(tmp_path, '[provenance]\nstatus = "conditional"\nconditions = ["a name"]\n').provenance
    assert (declared.status, declared.conditions) == ("conditional", ("a name",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[student]\nlayer = 3\n", "unknown key 'student.layer'"),
        ("[student\n", "cannot be read"),
        ("schema_version = 2\n", "newer edgecompress"),
        ("[student]\nlayers = 0\n", "at least one layer"),
        ("[student]\nlayers = []\n", "at least one layer"),
        ("[student]\nlayers = [2, 1]\n", "in ascending order"),
        ("[student]\nlayers = [1, 1]\n", "in ascending order"),
        ("[student]\nheads = 2\n", "give `hidden`"),
        ('[student]\nstart = "x"\nlayers = 2\n', "its own layers and width"),
        ("[student]\nhidden = 8\nlayers = [0]\n", "give a number of layers"),
        ("[loss]\nlogits = -1\n", "at least 0"),
        ("[loss]\nlogits = 0\n", "nothing is learned"),
        ("[loss]\ntemperature = 0\n", "temperature must be above 0"),
        ("[training]\nsteps = 1\nminutes = 2\n", "both given"),
        ("[training]\nsteps = 0\n", "steps must be at least 1"),
        ("[training]\nbatch = 0\n", "batch must be at least 1"),
        ("[training]\nwarmup = 1\n", "warmup must be a share"),
        ('[training]\nrounding = "int4"\n', "Did you mean 'int4-weights'"),
        ('[training]\nschedule = "cosin"\n', "Did you mean 'cosine'"),
        ("[training]\nblock_size = 100\n", "block_size must be a power of two"),
        ('method = "grey-box"\n', "no method named 'grey-box'"),
        ('[provenance]\nstatus = "fine"\n', "no provenance status named 'fine'"),
    ],
)
def test_recipes_without_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.hint


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe"):
        read_distill_recipe(tmp_path / "none.toml")


def test_a_task_has_a_loss_that_suits_it() -> None:
    def of(task: str, black_box: bool = False, rounded: bool = False, **given: float) -> dict[str, float]:
        loss = LossRecipe(**given)  # type: ignore[arg-type]
        spec = next(module.TASKS[task] for module in (encoder, decoder) if task in module.TASKS)
        return weights_of(resolve_loss(loss, task, spec, black_box=black_box, rounded=rounded))

    assert of("sentence-similarity") == {"embedding": 1.0}
    assert of("feature-extraction") == {"hidden": 1.0, "relations": 1.0}
    assert of("text-generation") == {"logits": 1.0}
    assert of("text-classification") == {"logits": 1.0, "hidden": 1.0}
    assert of("text-generation", black_box=True) == {"cross_entropy": 1.0}
    assert of("text-generation", rounded=True) == {"logits": 1.0, "hidden": 1.0}
    assert of("text-generation", rounded=True, logits=2.0) == {"logits": 2.0}
    assert of("text-generation", rounded=True, black_box=True) == {"cross_entropy": 1.0}
    assert of("sentence-similarity", rounded=True) == {"embedding": 1.0}
    assert of("sentence-similarity", hidden=2.0, embedding=0.0) == {"hidden": 2.0}
    with pytest.raises(RecipeError, match="no loss 'embedding'"):
        of("text-generation", embedding=1.0)
