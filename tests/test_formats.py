"""Published schemas match the dataclasses, and recipes survive a round trip through TOML."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompress.errors import RecipeError
from edgecompress.export.plan import check_names, plan
from edgecompress.formats.codec import from_jsonable, to_jsonable
from edgecompress.formats.older import measurements_now, report_now
from edgecompress.formats.recipe import read_recipe, recipe_toml, validate_recipe
from edgecompress.formats.schema import PUBLISHED, json_schema
from edgecompress.types.recipe import (
    EngineRecipe,
    QualityRecipe,
    QuantizeRecipe,
    Recipe,
    RuntimeRecipe,
    StudentRecipe,
)
from edgecompress.types.report import Fidelity
from tests.decoders import tiny_decoder
from tests.tiny import tiny_checkpoint

SCHEMAS = Path(__file__).parent.parent / "edgecompress" / "formats" / "schemas"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_schema_is_current(name: str) -> None:
    published = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    assert published == json_schema(PUBLISHED[name])


def test_a_recipe_survives_toml(tmp_path: Path) -> None:
    recipe = Recipe(
        precision="int8-static",
        student=StudentRecipe(source='odd "name"\\ with\nlines', max_length_tokens=64, allow_pickle=True),
        quantize=QuantizeRecipe(kv_cache="int8"),
        quality=QualityRecipe(min_fidelity=0.5),
    )
    path = tmp_path / "r.toml"
    path.write_text(recipe_toml(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe
    assert recipe_toml(read_recipe(path)) == recipe_toml(recipe)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(quality=QualityRecipe(min_fidelity=1.5)), "min_fidelity"),
        (Recipe(quantize=QuantizeRecipe(block_size=100)), "block_size"),
        (Recipe(quantize=QuantizeRecipe(method="gtpq")), "Did you mean 'gptq'"),
        (Recipe(quantize=QuantizeRecipe(kv_cache="fp8")), "no KV cache named 'fp8'"),
        (Recipe(quantize=QuantizeRecipe(kv_cache="fp16")), "the KV cache cannot be fp16"),
        (Recipe(quantize=QuantizeRecipe(head_bits=6)), "head_bits must be 4 or 8"),
        (Recipe(quantize=QuantizeRecipe(embedding_bits=2)), "embedding_bits must be 4 or 8"),
        (Recipe(quantize=QuantizeRecipe(mean_bits=3.5)), "mean_bits must be from 4 to 8"),
        (Recipe(quantize=QuantizeRecipe(accuracy_level="best")), "accuracy_level must be auto"),
        (Recipe(quantize=QuantizeRecipe(accuracy_level=2)), "accuracy_level must be auto, 0, 1 or 4"),
        (Recipe(quality=QualityRecipe(max_perplexity_ratio=0.0)), "max_perplexity_ratio"),
    ],
)
def test_invalid_values_are_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate_recipe(recipe)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(precision="int9"), "no precision named 'int9'"),
        (Recipe(format="gena"), "no format named 'gena'. Did you mean 'genai'"),
        (Recipe(backend="tensorrtx"), "no backend named 'tensorrtx'. Did you mean 'tensorrt'"),
        (Recipe(student=StudentRecipe(task="sumarization")), "no task named"),
    ],
)
def test_unknown_names_are_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_names(recipe)


def test_short_precisions_are_for_decoders(tmp_path: Path) -> None:
    decoder = StudentRecipe(source=str(tiny_decoder(tmp_path / "decoder", "qwen2")))
    encoder = StudentRecipe(source=str(tiny_checkpoint(tmp_path / "encoder", "bert")))
    for short, name in (("int4", "int4-weights"), ("int8", "int8-weights"), ("mixed", "mixed-weights")):
        assert plan(Recipe(precision=short, student=decoder)).recipe.precision == name
    for name in ("mixed", "mixed-weights"):
        with pytest.raises(RecipeError, match="this student's task is feature-extraction"):
            plan(Recipe(precision=name, student=encoder))
    assert plan(Recipe(precision="int8-dynamic", student=encoder)).recipe.precision == "int8-dynamic"
    with pytest.raises(RecipeError, match="'int8' is a short name for decoders only") as error:
        plan(Recipe(precision="int8", student=encoder))
    assert "int8-dynamic, int8-static, int8-weights" in error.value.hint


def test_limits_of_a_kind_survive_toml(tmp_path: Path) -> None:
    recipe = Recipe(quality=QualityRecipe(limits={"word error": 0.1}))
    (tmp_path / "r.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "r.toml") == recipe
    assert "limits" not in recipe_toml(Recipe())


def test_documents_of_earlier_versions_are_read() -> None:
    assert report_now({"notes": [], "costly_layers": []}) == {"notes": []}
    rows = [{"batch": 8, "length_tokens": 128, "runs": 7}, {"batch": 8, "length_tokens": 0, "runs": 7}]
    assert measurements_now({"latencies": rows})["latencies"] == [
        {"case": "8×128", "sizes": {"batch": 8, "tokens": 128}, "runs": 7},
        {"case": "batch 8", "sizes": {"batch": 8}, "runs": 7},
    ]


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, message in (
        ("precision = ", "cannot be read"),
        ("precision = 8", "must be str"),
        ("schema_version = 9", "newer"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_recipe(path)


def test_the_codec_is_strict() -> None:
    good = to_jsonable(Fidelity(samples=3, mean_cosine=1.0))
    assert from_jsonable(Fidelity, good) == Fidelity(samples=3, mean_cosine=1.0)
    assert from_jsonable(Fidelity, good | {"mean_cosine": 1}).mean_cosine == 1.0
    for change in ({"samples": "3"}, {"samples": True}, {"extra": 1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            from_jsonable(Fidelity, good | change)
    with pytest.raises(ValueError, match="'samples' is missing"):
        from_jsonable(Fidelity, {})
    assert replace(Fidelity(samples=1), samples=2).samples == 2


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(runtime=RuntimeRecipe(threads=0)),
        Recipe(student=StudentRecipe(source="s", max_length_tokens=0)),
        Recipe(engine=EngineRecipe(context_tokens=0)),
    ],
)
def test_zero_is_a_number_and_not_the_default(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="must be at least"):
        validate_recipe(recipe)
