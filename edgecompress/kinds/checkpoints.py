"""Finds a checkpoint and its kind."""

from __future__ import annotations

from dataclasses import replace

from edgecompress.capture.checkpoint import is_multimodal, is_pair, locate, read_json
from edgecompress.errors import StudentError
from edgecompress.kinds import kinds
from edgecompress.kinds.base import Kind
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Student
from edgecompress.types.task import Task


def load_student(recipe: StudentRecipe) -> Student:
    """Find and check the checkpoint. Raises StudentError, with a one-line message, if something is wrong with it."""
    folder, revision = locate(recipe)
    if not (folder / "config.json").exists():
        raise StudentError(
            f"{recipe.source} is not a checkpoint: it has no config.json",
            hint="Give the folder that contains config.json.",
        )
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise StudentError("config.json names no model_type", hint="Give a transformers checkpoint.")
    if config.get("auto_map") and not recipe.trust_remote_code:
        raise StudentError(
            f"the checkpoint brings its own Python code ({', '.join(sorted(config['auto_map']))})",
            hint="Review that code, then pass --trust-remote-code.",
        )
    checkpoint = Checkpoint(folder=folder, config=config)
    kind, task = _kind_of(checkpoint, recipe.task)
    student = kind.student.read(checkpoint, task, recipe)
    return replace(student, kind=kind.name, revision=revision)


def _kind_of(checkpoint: Checkpoint, wanted: str | None) -> tuple[Kind, Task]:
    """Return the checkpoint's kind and task. Encoders, which accept any text model, are tried last.

    Raises StudentError if no kind accepts it, or if its kind rejects it.
    """
    for kind in reversed(list(kinds().values())):
        task = kind.student.matches(checkpoint, wanted)
        if task is not None:
            return kind, task
    architecture = checkpoint.architecture
    if is_pair(checkpoint.config):
        raise StudentError(
            f"'{architecture}' is an encoder-decoder; this version exports encoders and decoders",
            hint="Give an encoder (BERT, MiniLM, ViT, …) or a causal language model (Qwen2, Llama, …).",
        )
    if is_multimodal(checkpoint.config):
        raise StudentError(
            f"'{architecture}' takes more than text; this version exports encoders and decoders of text",
            hint="Give the checkpoint of its language model alone (…ForCausalLM).",
        )
    raise StudentError(
        f"'{architecture}' cannot do {wanted}" if wanted else f"no installed kind supports '{architecture}'",
        hint="Omit --task to use the checkpoint's own task.",
    )
