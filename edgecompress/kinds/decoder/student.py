"""Recognizes and reads decoder checkpoints: causal language models with a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgecompress.capture.checkpoint import head_of, is_pair, labels_of, read_student
from edgecompress.capture.tokenizer import limit_length, position_count, require_tokenizer
from edgecompress.errors import StudentError
from edgecompress.kinds.decoder.tasks import GENERATION
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Student
from edgecompress.types.task import Task


def matches(checkpoint: Checkpoint, task: str | None) -> Task | None:
    """Return the task, or None for another kind or a causal model of sentence embeddings, unless ``task`` names it.

    Raises StudentError for a decoder without a head.
    """
    config = checkpoint.config
    if is_pair(config):
        return None
    if not GENERATION.fits(head_of(config)):
        if config.get("is_decoder"):
            raise StudentError(
                f"'{checkpoint.architecture}' is a decoder without a language-model head",
                hint="Give the checkpoint with its head (…ForCausalLM).",
            )
        return None
    is_sentence = (checkpoint.folder / "modules.json").exists()
    wanted = task == GENERATION.name or (task is None and not is_sentence)
    return GENERATION if wanted else None


def read(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    """Read the checkpoint. Raises StudentError for damaged weights, a missing tokenizer or an unknown length."""
    student = read_student(checkpoint, task, recipe)
    require_tokenizer(checkpoint.folder, recipe.source)
    return replace(
        student,
        max_length_tokens=_max_length(recipe, checkpoint.config),
        labels=labels_of(checkpoint.config),
    )


def _max_length(recipe: StudentRecipe, config: Mapping[str, Any]) -> int:
    """Use config.json's, since a tokenizer's can be another model's: R1-Distill's says 16,384 instead of 131,072."""
    limit = position_count(config, unless_said=recipe.max_length_tokens)
    return limit_length(recipe.max_length_tokens, limit) if recipe.max_length_tokens is not None else limit
