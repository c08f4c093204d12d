"""What the tutorials and their how-tos need before their first line."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.docs.setups import setup

_TESTS = Path(__file__).parents[1]


@setup("package")
def package(folder: Path, name: str) -> None:
    """Skips the page where ``name`` is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@setup("kernel-student")
def kernel_student(folder: Path, path: str) -> None:
    """A sentence student that our kernels and TensorRT take: heads of 32, a feed-forward network of 112."""
    from tests.distill.lessons import sentence_teacher

    sentence_teacher(folder / path, num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=112)


@setup("whole-bundle")
def whole_bundle(folder: Path, path: str) -> None:
    """An exported sentence bundle for x86-64-avx2 with all that ``inspect`` and ``verify`` read."""
    shutil.copytree(_TESTS / "schema_1" / "encoder", folder / path)


@setup("exported-bundle")
def exported_bundle(folder: Path, path: str) -> None:
    """A student with the layout of all-MiniLM-L6-v2, exported in int8-dynamic for this machine."""
    from edgecompress.export.pipeline import export
    from edgecompress.types.recipe import QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe
    from tests.distill.lessons import sentence_teacher

    sentence_teacher(folder / "all-MiniLM-L6-v2")
    recipe = Recipe(
        precision="int8-dynamic",
        student=StudentRecipe(source=str(folder / "all-MiniLM-L6-v2")),
        quality=QualityRecipe(samples=8),
        runtime=RuntimeRecipe(threads=2, kernels="none"),
    )
    export(recipe, folder / path)
