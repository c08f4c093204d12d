"""Flags of the weight-only precisions end up in the recipe."""

from __future__ import annotations

import argparse

import pytest

from edgecompress.cli import main
from edgecompress.cli.export import add_arguments, recipe_from
from edgecompress.cli.export_lines import describe
from edgecompress.kinds import find_kind
from edgecompress.types.recipe import EngineRecipe, QuantizeRecipe
from edgecompress.types.report import Fidelity


def options(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["checkpoint", *flags])


def test_flags_fill_the_recipe() -> None:
    flags = "--precision int4 --method gptq --zero-points --head-bits 8 --embedding-bits 8 --accuracy-level 0"
    flags += " --kv-cache int8 --block-size 32"
    recipe = recipe_from(options(*flags.split(), "--max-perplexity-ratio", "1.01"))
    assert recipe.precision == "int4"
    assert recipe.quantize == QuantizeRecipe(
        method="gptq", symmetric=False, head_bits=8, embedding_bits=8, accuracy_level=0, block_size=32, kv_cache="int8"
    )
    assert recipe.quality.max_perplexity_ratio == 1.01


def test_mixed_bits_and_a_level_to_be_measured() -> None:
    recipe = recipe_from(options("--precision", "mixed", "--mean-bits", "5.25", "--accuracy-level", "auto"))
    assert recipe.precision == "mixed"
    assert recipe.quantize == QuantizeRecipe(mean_bits=5.25, accuracy_level="auto")
    with pytest.raises(SystemExit):
        options("--accuracy-level", "best")


def test_what_is_not_given_keeps_its_default() -> None:
    assert recipe_from(options()).quantize == QuantizeRecipe()


def test_a_decoder_s_figures_fit_on_one_line() -> None:
    fidelity = Fidelity(samples=3, perplexity_ratio=1.0123, mean_kl=0.0045, top1_agreement=0.95)
    assert describe(fidelity, find_kind("decoder").metric) == "perplexity ratio 1.0123, KL 0.0045, top-1 0.9500"


def test_profiles_of_engines_are_three_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    given = options("--backend", "tensorrt-rtx", "--engine-batch", "1,2,4", "--engine-tokens", "8,16,32")
    recipe = recipe_from(given)
    assert recipe.backend == "tensorrt-rtx"
    assert recipe.engine == EngineRecipe(batch=(1, 2, 4), length_tokens=(8, 16, 32))
    assert main(["export", "checkpoint", "--engine-batch", "1,2", "-o", "bundle"]) == 2
    assert "--engine-batch: three whole numbers such as 1,8,32, not '1,2'" in capsys.readouterr().err
