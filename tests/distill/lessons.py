"""Small teachers, data and recipes for the tests of a distillation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgecompress.distill.plan import Plan
from edgecompress.distill.run import distill
from edgecompress.types.distill import Distillation, DistillRecipe, NewStudentRecipe, TrainingRecipe
from tests.tiny import SENTENCES, tiny_checkpoint

TRAINING = TrainingRecipe(steps=40, batch=8, learning_rate=3e-3)
CARD = "---\nlicense: apache-2.0\nbase_model: somebody/base\ndatasets:\n- a/b\n---\n\n# A teacher\n"


def sentence_teacher(folder: Path, **overrides: int) -> Path:
    """A sentence encoder of four layers with random weights, and a card."""
    tiny_checkpoint(folder, "bert", **({"num_hidden_layers": 4} | overrides))
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(CARD)
    return folder


def sentences(path: Path) -> Path:
    """Sixty texts that differ."""
    words = " ".join(SENTENCES).split()
    texts = [
        " ".join(words[n % 7 : n % 7 + 4 + n % 9]) + f" {words[n % len(words)]} {words[n // 2]}" for n in range(60)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def recipe_file(path: Path, text: str = "[student]\nlayers = 2\n") -> Path:
    path.write_text(text)
    return path


def recipe(**changes: Any) -> DistillRecipe:
    return replace(DistillRecipe(student=NewStudentRecipe(layers=2), training=TRAINING), **changes)


def taught(plan: Plan, output: Path, **options: Any) -> Distillation:
    threads = torch.get_num_threads()
    made = distill(plan, output, threads=1, **options)
    assert torch.get_num_threads() == threads
    return made
