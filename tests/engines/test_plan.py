"""What an export for TensorRT-RTX is asked for, resolved or refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecompress.backends.tensorrt_rtx import engine as tensorrt_rtx
from edgecompress.errors import EdgeCompressError, HostError, RecipeError
from edgecompress.export.plan import plan
from edgecompress.formats.recipe import read_recipe, recipe_toml, validate_recipe
from edgecompress.targets import find_target, require_backend
from edgecompress.types.recipe import EngineRecipe, QuantizeRecipe, Recipe, RuntimeRecipe, StudentRecipe
from tests.decoders import tiny_decoder
from tests.tiny import tiny_checkpoint

BASE = Recipe(target="rtx-4090", backend="tensorrt-rtx", precision="int8")


@pytest.fixture(autouse=True)
def _builder_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "require_builder", lambda _: None)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> StudentRecipe:
    return StudentRecipe(source=str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert")))


@pytest.mark.parametrize(
    ("asked", "concrete"),
    [("fp16", "fp16"), ("int8", "int8-static"), ("int8-static", "int8-static"), ("int4", "int4-weights")],
)
def test_short_names_mean_one_thing(student: StudentRecipe, asked: str, concrete: str) -> None:
    job = plan(replace(BASE, student=student, precision=asked))
    assert job.backend.name == job.recipe.backend == "tensorrt-rtx"
    assert job.candidates == (job.recipe.precision,) == (concrete,)
    assert not job.measured_here
    assert [stage.name for stage in job.stages] == [
        "capture", "calibrate", "quantize", "lower", "verify", "compile", "bundle",
    ]  # fmt: skip
    assert "compute capability 8.9" in job.stages[5].description


def test_lengths_are_the_students_unless_given(student: StudentRecipe) -> None:
    filled = EngineRecipe(batch=(1, 8, 32), length_tokens=(1, 50, 100))
    assert plan(replace(BASE, student=student)).recipe.engine == filled
    given = EngineRecipe(batch=(1, 2, 4), length_tokens=(8, 16, 32))
    assert plan(replace(BASE, student=student, engine=given)).recipe.engine == given


def test_a_cpu_has_no_profile(student: StudentRecipe) -> None:
    job = plan(Recipe(student=student, precision="fp32"))
    assert (job.recipe.backend, job.recipe.engine) == ("onnxruntime", EngineRecipe())
    assert plan(job.recipe).recipe == job.recipe


def test_the_first_backend_is_taken_unless_another_is_named() -> None:
    assert require_backend(find_target("l4")) == "tensorrt"
    assert require_backend(find_target("rtx-4090")) == "tensorrt-rtx"
    assert require_backend(find_target("raspberry-pi-5")) == "onnxruntime"
    assert require_backend(find_target("rtx-4090"), "tensorrt") == "tensorrt"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (replace(BASE, precision="auto"), "--precision auto needs to time candidates"),
        (replace(BASE, precision="int8-dynamic"), "does not build engines in int8-dynamic"),
        (replace(BASE, precision="fp32"), "does not build engines in fp32"),
        (replace(BASE, backend="tensorrtx"), "no backend named 'tensorrtx'. Did you mean 'tensorrt'"),
        (replace(BASE, target="raspberry-pi-5"), "'raspberry-pi-5' has no backend named 'tensorrt-rtx'"),
        (replace(BASE, quantize=QuantizeRecipe(symmetric=False)), "TensorRT supports symmetric weights only"),
        (replace(BASE, runtime=RuntimeRecipe(kernels="matmul")), "--kernels is for ONNX Runtime on a CPU"),
        (
            replace(BASE, target="local", backend=None, precision="fp32", engine=EngineRecipe(batch=(1, 1, 1))),
            "are for engines",
        ),
        (
            replace(BASE, engine=EngineRecipe(length_tokens=(1, 64, 101))),
            "has up to 101 tokens",
        ),
        (replace(BASE, precision="int8-weights"), "does not build engines in int8-weights"),
        (replace(BASE, engine=EngineRecipe(context_tokens=64)), "--engine-context is for decoders"),
        (replace(BASE, engine=EngineRecipe(batch=(4, 2, 8))), "engine.batch must be min,opt,max"),
        (replace(BASE, engine=EngineRecipe(length_tokens=(0, 2, 8))), "length_tokens must be min,opt,max"),
    ],
)
def test_what_no_engine_can_be_is_refused(student: StudentRecipe, recipe: Recipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(replace(recipe, student=student))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> StudentRecipe:
    """Takes 96 tokens."""
    return StudentRecipe(source=str(tiny_decoder(tmp_path_factory.mktemp("tiny") / "qwen2", "qwen2")))


@pytest.mark.parametrize(
    ("asked", "concrete"),
    [("fp16", "fp16"), ("int8", "int8-weights"), ("int8-weights", "int8-weights"), ("int4", "int4-weights")],
)
def test_a_decoders_names_are_of_its_weights(decoder: StudentRecipe, asked: str, concrete: str) -> None:
    job = plan(replace(BASE, student=decoder, precision=asked))
    assert job.candidates == (concrete,)
    assert job.recipe.engine == EngineRecipe(batch=(1, 1, 4), length_tokens=(1, 1, 96), context_tokens=96)


def test_a_decoders_calls_are_as_long_as_its_context_at_most(decoder: StudentRecipe) -> None:
    given = EngineRecipe(batch=(1, 2, 2), context_tokens=64)
    job = plan(replace(BASE, student=decoder, engine=given))
    assert job.recipe.engine == replace(given, length_tokens=(1, 1, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8-static"}, "does not build engines in int8-static"),
        ({"engine": EngineRecipe(context_tokens=97)}, "context is 97 tokens, but the student's is 96"),
        ({"engine": EngineRecipe(context_tokens=32, length_tokens=(1, 1, 33))}, "33 tokens, but its context is 32"),
        ({"engine": EngineRecipe(context_tokens=4)}, "context_tokens must be at least 8"),
        ({"quantize": QuantizeRecipe(kv_cache="int8")}, "a GPU's KV cache is float16, not int8"),
        ({"format": "genai"}, "does not support --format genai for GPUs"),
    ],
)
def test_what_no_decoders_engine_can_be_is_refused(
    decoder: StudentRecipe, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(replace(BASE, student=decoder, **changes))


def test_an_absent_builder_is_said_before_the_checkpoint_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: object) -> None:
        raise HostError("not installed")

    monkeypatch.setattr(tensorrt_rtx, "require_builder", absent)
    with pytest.raises(EdgeCompressError, match="not installed"):
        plan(replace(BASE, student=StudentRecipe(source="there/is/none")))


def test_profiles_survive_toml(tmp_path: Path) -> None:
    recipe = replace(BASE, engine=EngineRecipe(batch=(1, 2, 3), length_tokens=(4, 5, 6)))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(recipe), encoding="utf-8")
    assert "length_tokens = [4, 5, 6]" in path.read_text()
    assert read_recipe(path) == recipe
    validate_recipe(replace(recipe, backend=None))
    assert "backend" not in recipe_toml(replace(recipe, backend=None))
