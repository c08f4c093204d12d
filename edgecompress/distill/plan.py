"""Resolves and checks a distillation before training, so that invalid input fails early."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecompress.distill.data import TeachingData, read_data
from edgecompress.distill.examples import Example, make_examples
from edgecompress.distill.task import distill_task
from edgecompress.distill.tokenizers import load_tokenizer, require_same_tokens
from edgecompress.errors import HostError, RecipeError, StudentError, UsageError
from edgecompress.formats.codec import dumps
from edgecompress.formats.distill_recipe import validate_distill_recipe
from edgecompress.kinds.checkpoints import load_student
from edgecompress.runtime.memory import check_available
from edgecompress.types.distill import BLACK_BOX, NO_ROUNDING, DistillRecipe, TeacherRecord
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Student

DEFAULT_STEPS = 1000
_PROBED_TEXTS = 16  # to compare two tokenizers
_WEIGHT_BYTES = 4  # float32
_LEARNED_BYTES = 16  # weight, gradient and the optimizer's two moments
_STATES_A_LAYER = 24  # float32 [batch, tokens, hidden] kept per layer for the gradient, estimated


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``teacher`` None: the teacher is an endpoint, and the data holds its responses."""

    recipe: DistillRecipe  # with every default filled in, except ``steps`` if ``minutes`` are given
    recipe_sha256: str
    teacher: Student | None
    record: TeacherRecord
    origin: Student  # the checkpoint that gives the student its tokenizer, pooling and task
    data: TeachingData
    examples: Sequence[Example]
    tokenizer: Any
    estimated_ram_bytes: int

    @property
    def black_box(self) -> bool:
        return self.recipe.method == BLACK_BOX


def make_plan(
    teacher: str | None,
    recipe: DistillRecipe,
    data: Path | TeachingData,
    record: TeacherRecord | None = None,
    *,
    asked: bool = True,
) -> Plan:
    """``teacher``: a folder or hub id; None, with a ``record``, for an endpoint whose responses are in the data.

    ``asked`` False: prompts in the data may lack a response.

    Raises UsageError, RecipeError, StudentError, or HostError if memory is too small.
    """
    if find_spec("accelerate") is None:
        raise HostError("distill needs the package 'accelerate'", hint="pip install 'edgecompress[export,distill]'")
    validate_distill_recipe(recipe)
    taught = read_data(data) if isinstance(data, Path) else data
    described = load_student(StudentRecipe(source=teacher)) if teacher is not None else None
    if described is None and recipe.student.start is None:
        raise RecipeError(
            "a teacher behind an endpoint has no layers to start a student from",
            hint='Set start = "FOLDER" in [student], the checkpoint to train.',
        )
    start = load_student(StudentRecipe(source=recipe.student.start)) if recipe.student.start else None
    origin = start or described
    assert origin is not None
    recipe = _resolve(recipe, origin, described)
    if recipe.method == BLACK_BOX and asked:
        _require_responses(taught)
    tokenizer = load_tokenizer(origin.path, trust_remote_code=origin.trust_remote_code)
    if start is not None and described is not None and recipe.method != BLACK_BOX:
        if start.task != described.task:
            raise StudentError(
                f"the teacher's task is {described.task}, the student's {start.task}",
                hint="Use two checkpoints of the same task.",
            )
        require_same_tokens(load_tokenizer(described.path), tokenizer, taught.texts[:_PROBED_TEXTS])
    size = min(recipe.training.max_length_tokens, origin.max_length_tokens or recipe.training.max_length_tokens)
    recipe = replace(recipe, training=replace(recipe.training, max_length_tokens=size))
    estimate = _memory(recipe, origin, described)
    check_available(
        estimate,
        "training this student" if described is None else "training this student with its teacher",
        "Use a smaller batch or max_length_tokens in [training], a smaller teacher, or a machine with more memory; "
        "or train on the teacher's responses only (method = 'black-box').",
    )
    examples = make_examples(taught, tokenizer, size, next_token=distill_task(origin).next_token)
    return Plan(
        recipe=recipe,
        recipe_sha256=hashlib.sha256(dumps(recipe).encode()).hexdigest(),
        teacher=described,
        record=record or record_of(described),
        origin=origin,
        data=taught,
        examples=examples,
        tokenizer=tokenizer,
        estimated_ram_bytes=estimate,
    )


def _resolve(recipe: DistillRecipe, origin: Student, teacher: Student | None) -> DistillRecipe:
    """The recipe with every default filled in. Imports torch here, so that the module stays light."""
    from edgecompress.distill.objective import resolve_loss
    from edgecompress.distill.shapes import resolve

    spec = distill_task(origin)
    method = recipe.method or ("white-box" if teacher is not None else BLACK_BOX)
    if method != BLACK_BOX and teacher is None:
        raise RecipeError(
            "a teacher behind an endpoint is a black box", hint="Omit method, or give the teacher's checkpoint."
        )
    if method == BLACK_BOX and not spec.next_token:
        raise RecipeError(
            f"a student of task {origin.task} cannot learn from responses (black box)",
            hint="Use a decoder, or method = 'white-box' with the teacher's checkpoint.",
        )
    student = resolve(recipe.student, _layers(teacher)) if teacher is not None else recipe.student
    training = recipe.training
    rounded = training.rounding != NO_ROUNDING
    if training.learning_rate is None:
        gentle = (spec.rounded_learning_rate if rounded else None) or 1e-4
        training = replace(training, learning_rate=gentle if student.start else 2e-3 if student.hidden else 5e-4)
    if training.steps is None and training.minutes is None:
        training = replace(training, steps=DEFAULT_STEPS)
    loss = resolve_loss(recipe.loss, origin.task, spec, black_box=method == BLACK_BOX, rounded=rounded)
    return replace(recipe, method=method, student=student, training=training, loss=loss)


def _require_responses(data: TeachingData) -> None:
    lacking = next((place for place, pair in enumerate(data.pairs, 1) if pair.response is None), None)
    if data.pairs and lacking is None:
        return
    what = f"prompt {lacking} of {data.name} has no response" if lacking else f"{data.name} has texts"
    raise UsageError(
        f"{what}, but a black box teaches by its responses",
        hint='Give lines with {"prompt": "…", "response": "…"}, or only prompts with --teacher openai:URL#MODEL, an '
        "endpoint that answers them (`edgecompress serve` provides one).",
    )


def _config(student: Student) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(student.path, trust_remote_code=student.trust_remote_code)


def _layers(student: Student) -> int:
    return int(_config(student).num_hidden_layers)


def _memory(recipe: DistillRecipe, origin: Student, teacher: Student | None) -> int:
    """Upper bound in bytes of the training's memory."""
    config, training = _config(origin), recipe.training
    positions = training.batch * training.max_length_tokens
    kept = recipe.student.layers
    layers = len(kept) if isinstance(kept, tuple) else kept or int(config.num_hidden_layers)
    states = positions * int(config.hidden_size) * _STATES_A_LAYER * layers * _WEIGHT_BYTES
    wide = recipe.loss.logits or recipe.loss.cross_entropy
    logits = positions * int(config.vocab_size) * _WEIGHT_BYTES * 4 if wide and distill_task(origin).next_token else 0
    share = layers / int(config.num_hidden_layers) if recipe.student.start is None else 1.0
    learned = int(origin.parameters * share * _LEARNED_BYTES)
    return learned + states + logits + (teacher.parameters * _WEIGHT_BYTES if teacher is not None else 0)


def record_of(checkpoint: Student | None) -> TeacherRecord:
    from edgecompress.lineage.card import read_card

    assert checkpoint is not None
    card = read_card(checkpoint.path).front
    licence, base = card.get("license_name") or card.get("license"), card.get("base_model")
    is_hub_id = checkpoint.revision is not None
    return TeacherRecord(
        kind="checkpoint",
        name=checkpoint.source if is_hub_id else checkpoint.path.name,
        revision=checkpoint.revision,
        licence=str(licence) if licence else None,
        base_model=(", ".join(map(str, base)) if isinstance(base, list) else str(base)) if base else None,
        files=dict(checkpoint.files),
    )
