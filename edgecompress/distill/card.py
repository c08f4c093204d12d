"""The student's README.md: only known facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edgecompress.distill.objective import weights_of
from edgecompress.lineage.card import read_card
from edgecompress.types.distill import Distillation, DistillRecipe
from edgecompress.types.student import Student

_LICENCE_KEYS = ("license", "license_name", "license_link")


def write_card(folder: Path, name: str, record: Distillation, recipe: DistillRecipe, origin: Student) -> None:
    """Write README.md. ``license`` is copied from the card of ``origin``, the student's first checkpoint, if any.

    Data sets are not listed, because none are known.
    """
    known = read_card(origin.path).front
    base = record.start or record.teacher
    head: dict[str, Any] = {key: known[key] for key in _LICENCE_KEYS if known.get(key)}
    head |= {"base_model": base.name, "pipeline_tag": origin.task, "tags": ["distillation", "edgecompress"]}
    if (folder / "modules.json").exists():
        head["library_name"] = "sentence-transformers"
    else:
        head["library_name"] = "transformers"
    loss = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in weights_of(recipe.loss).items())
    training = recipe.training
    lines = [
        f"# {name}",
        "",
        f"Distilled from {record.teacher.name} ({record.method}) with edgecompress {record.tool_version}.",
        "",
        f"- starting weights: {_start(recipe)}",
        f"- loss: {loss}",
        f"- {record.steps} steps, batch size {training.batch}, {record.data.tokens} tokens, {record.seconds:.0f} s, "
        f"seed {record.seed}, learning rate {training.learning_rate:g}",
        f"- data: {record.data.name}, {record.data.examples} examples (sha256 {record.data.sha256})",
        *_stored(record),
        f"- rounding during training: {training.rounding}",
        f"- licence of the teacher: {record.teacher.licence or 'unknown'}",
        *([f"- licence of {base.name}: {base.licence or 'unknown'}"] if record.start else []),
        "",
        "`distillation.json` holds the hashes of the teacher, the data and these weights, and the declared terms; "
        "`distill.toml` is the recipe, `loss.json` the loss per step.",
    ]
    if (folder / "loss.svg").exists():
        lines += ["", "![Loss over the steps](loss.svg)", "", "Pale: the loss as logged. Dark: its running mean."]
    content = yaml.safe_dump(head, sort_keys=True, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{content}---\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _stored(record: Distillation) -> list[str]:
    given = record.data.responses
    if given is None:
        return []
    who = f", which names {given.teacher} as their teacher" if given.teacher is not None else ""
    return [f"- {given.responses} responses come from {given.name} (sha256 {given.sha256}){who}"]


def _start(recipe: DistillRecipe) -> str:
    student = recipe.student
    if student.start is not None:
        return f"the checkpoint {Path(student.start).name}"
    if student.hidden is not None:
        return f"random weights, {student.layers} layers of {student.hidden}"
    assert isinstance(student.layers, tuple)
    return f"layers {', '.join(map(str, student.layers))} of the teacher"
