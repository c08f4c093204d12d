"""The student's folder: a checkpoint for `export`, with a card and a record of the run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgecompress.distill.card import write_card
from edgecompress.distill.curve import Point, write_curve
from edgecompress.errors import OutputError
from edgecompress.export.bundle import check_writable
from edgecompress.formats.codec import dumps
from edgecompress.formats.manifest import file_sha256
from edgecompress.formats.recipe import recipe_toml
from edgecompress.types.distill import RECORD, Distillation, DistillRecipe
from edgecompress.types.student import Student

RECIPE = "distill.toml"
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
)
_SENTENCE = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def check_free(output: Path) -> None:
    """Raises OutputError if the output exists, or cannot be written."""
    if output.exists() or output.is_symlink():
        raise OutputError(f"{output} already exists", hint="Give another --output.")
    check_writable(output)


def write_student(
    output: Path,
    model: torch.nn.Module,
    recipe: DistillRecipe,
    record: Distillation,
    curve: Sequence[Point],
    *,
    origin: Student,
) -> Distillation:
    """Write to a temporary folder, then rename it. Returns the record with the weights' hashes.

    Raises OutputError and removes the temporary folder.
    """
    output = output.absolute()
    part = output.parent / f".{output.name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        saved: Any = model
        saved.save_pretrained(part)
        copy_tokenizer(origin.path, part)
        _copy_pooling(origin.path, part, int(saved.config.hidden_size))
        weights = {path.name: file_sha256(path) for path in sorted(part.glob("*.safetensors"))}
        record = replace(record, weights=weights)
        (part / RECORD).write_text(dumps(record), encoding="utf-8")
        (part / RECIPE).write_text(recipe_toml(recipe), encoding="utf-8")
        write_curve(part, curve)
        write_card(part, output.name, record, recipe, origin)
        os.rename(part, output)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise OutputError(
            f"cannot write {output}: {reason}", hint="The training is kept: continue with --resume."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer byte for byte, so the student gets exactly the teacher's tokens."""
    for pattern in _TOKENIZER:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def _copy_pooling(source: Path, target: Path, hidden: int) -> None:
    """Copy sentence-transformers' files, if any, with the student's width in the pooling's config."""
    if not (source / _SENTENCE[0]).exists():
        return
    for name in _SENTENCE:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    for module in json.loads((source / _SENTENCE[0]).read_text(encoding="utf-8")):
        folder = module.get("path") or ""
        if not folder or not (source / folder).is_dir():
            continue
        shutil.copytree(source / folder, target / folder)
        config = target / folder / "config.json"
        if str(module["type"]).endswith("Pooling") and config.exists():
            said = json.loads(config.read_text(encoding="utf-8"))
            said["word_embedding_dimension"] = hidden
            config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
