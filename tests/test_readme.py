"""Runs the example of a bundle's README, for every task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecompress.export.pipeline import export
from edgecompress.formats.manifest import read_manifest
from edgecompress.kinds import find_kind
from edgecompress.types.recipe import QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe
from tests.decoder_bundle import decoder_bundle
from tests.decoders import tiny_decoder
from tests.distill.lessons import sentence_teacher
from tests.serve.encoder_bundle import encoder_bundle
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

Make = Callable[[Path], Path]


def of(model_type: str, auto: str, **overrides: Any) -> Make:
    return lambda folder: tiny_checkpoint(folder, model_type, auto, **overrides)


STUDENTS: dict[str, Make] = {
    "sentence-similarity": sentence_teacher,
    "feature-extraction": of("bert", "AutoModel"),
    "text-classification": of("bert", "AutoModelForSequenceClassification", num_labels=3),
    "text-ranking": of("bert", "AutoModelForSequenceClassification", num_labels=1),
    "token-classification": of("bert", "AutoModelForTokenClassification", num_labels=2),
    "question-answering": of("bert", "AutoModelForQuestionAnswering"),
    "fill-mask": of("bert", "AutoModelForMaskedLM"),
    "image-classification": of("vit", "AutoModelForImageClassification", num_labels=4),
    "image-feature-extraction": of("vit", "AutoModel"),
    "text-generation": lambda folder: tiny_decoder(folder, "qwen2"),
}


def run_example(lines: list[str], bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the example with the bundle's path, and with a photo if the example needs one."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    code = "\n".join(lines)
    assert "path/to/this/folder" in code
    exec(compile(code.replace("path/to/this/folder", str(bundle)), "README.md", "exec"), {})


@pytest.mark.parametrize("task", STUDENTS)
def test_the_example_in_an_exported_readme_works(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(
        precision="fp32",
        student=StudentRecipe(source=str(STUDENTS[task](tmp_path / "student"))),
        quality=QualityRecipe(samples=4),
        runtime=RuntimeRecipe(kernels="none"),
    )
    export(recipe, tmp_path / "b")
    assert read_manifest(tmp_path / "b").task == task
    readme = (tmp_path / "b" / "README.md").read_text()
    block = readme.partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    run_example(block.splitlines(), tmp_path / "b", tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("make", [encoder_bundle, decoder_bundle, lambda folder: decoder_bundle(folder, template=None)])
def test_the_example_of_a_bundle_works(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make(tmp_path / "b")
    manifest = read_manifest(bundle)
    lines = ["from edgecompress.runtime import load", *find_kind(manifest.kind).card.example(manifest)]
    run_example(lines, bundle, tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip()
