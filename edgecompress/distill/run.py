"""The stages of a distillation, in order: student, teacher's vectors, training, output."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers

from edgecompress.capture.model import load_model
from edgecompress.distill.examples import digest, order_of
from edgecompress.distill.objective import Objective, needs_heads, vectors_only
from edgecompress.distill.output import check_free, write_student
from edgecompress.distill.plan import Plan, record_of
from edgecompress.distill.recording import IMPLEMENTATION, register
from edgecompress.distill.rounding import Rounding
from edgecompress.distill.shapes import make_student
from edgecompress.distill.task import distill_task
from edgecompress.distill.teacher_vectors import load_vectors, save_vectors, vectors_of
from edgecompress.distill.trainer import Lesson, steps_in, train
from edgecompress.distill.work import Run, WorkFolder, require_same
from edgecompress.errors import EdgeCompressError, InterruptedRunError, StudentError
from edgecompress.export.interrupts import Interrupts
from edgecompress.kinds.checkpoints import load_student
from edgecompress.types.distill import NO_ROUNDING, DataRecord, Distillation
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Student
from edgecompress.version import __version__

Show = Callable[[str], None]
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers")
_PROBED = 8  # steps in the order while the number of steps is unknown


def distill(
    plan: Plan,
    output: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    show: Show = lambda _: None,
) -> Distillation:
    """Train the student and return its record. ``resume`` continues an interrupted training, kept next to ``output``.

    Raises OutputError, UsageError, RecipeError, StudentError, and InterruptedRunError, which names what is kept.
    """
    check_free(output)
    work = WorkFolder(output)
    was = work.begin(resume=resume)
    now = _identity(plan)
    if was is not None:
        require_same(was, now, plan.recipe.training.steps)
    with _threads(threads), _checkpoint_kept(work), Interrupts() as interrupts:

        def show_unless_interrupted(text: str) -> None:
            interrupts.raise_lost()
            show(text)

        transformers.utils.logging.disable_progress_bar()
        made = _run(plan, output, work, was, now, show_unless_interrupted, interrupts)
    work.remove()
    return made


def _run(
    plan: Plan,
    output: Path,
    work: WorkFolder,
    was: Run | None,
    now: Mapping[str, str],
    show: Show,
    interrupts: Interrupts,
) -> Distillation:
    began, recipe = time.perf_counter(), plan.recipe.training
    teacher, student = load_pair(plan, show)
    examples, pad = plan.examples, _pad(plan)
    rounding = rounding_of(student, plan)  # before the loss adds a module to the student
    objective = Objective(plan.recipe.loss, plan.origin, student, None if plan.black_box else teacher)
    assert recipe.learning_rate is not None
    lesson = Lesson(
        examples=examples,
        order=_order(plan, _PROBED),
        pad_token_id=pad,
        objective=objective,
        recipe=recipe,
        learning_rate=recipe.learning_rate,
        rounding=rounding,
    )
    steps = recipe.steps if was is None else was.steps
    if steps is None:
        assert recipe.minutes is not None
        steps = steps_in(student, lesson, recipe.minutes, show)
    lesson = replace(lesson, order=_order(plan, steps))
    if was is None:
        work.write(Run(of=now, steps=steps))
    if vectors_only(plan.recipe.loss) and teacher is not None:
        vectors = load_vectors(work.path)
        if vectors is None:
            vectors = vectors_of(objective, teacher, examples, np.unique(lesson.order).tolist(), pad, show)
            save_vectors(work.path, vectors)
        objective.vectors = vectors.to(next(teacher.parameters()).device)
    before = work.seconds
    curve = train(student, lesson, work, show, interrupts)
    objective.take_off(student)
    show("writing the student")
    lengths = np.array([len(example.ids) for example in examples])
    record = Distillation(
        tool_version=__version__,
        method=plan.recipe.method or "",
        teacher=plan.record,
        start=record_of(plan.origin) if plan.recipe.student.start is not None else None,
        data=DataRecord(
            name=plan.data.name,
            sha256=plan.data.sha256,
            examples=len(examples),
            tokens=int(lengths[lesson.order].sum()),
            responses=plan.data.stored,
        ),
        recipe_sha256=plan.recipe_sha256,
        seed=recipe.seed,
        steps=steps,
        seconds=round(before + time.perf_counter() - began, 1),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        weights={},
        provenance=plan.recipe.provenance,
    )
    model = student.cpu().eval()
    return write_student(output, model, plan.recipe, record, curve, origin=plan.origin)


def load_pair(plan: Plan, show: Show = lambda _: None) -> tuple[torch.nn.Module | None, torch.nn.Module]:
    """The frozen teacher, or None if it is not needed, and the untrained student. Both float32."""
    register()
    implementation = IMPLEMENTATION if needs_heads(plan.recipe.loss) else "sdpa"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start, teacher = plan.recipe.student.start, None
    if plan.teacher is not None and not (plan.black_box and start):
        show("loading the teacher")
        teacher = _load(plan.teacher, implementation).requires_grad_(False)
    if start is not None:
        student = _load(load_student(StudentRecipe(source=start)), implementation)
    else:
        assert teacher is not None
        student = make_student(plan.recipe.student, teacher, plan.origin, plan.recipe.training.seed)
    return None if teacher is None else teacher.to(device), student.to(device)


def _load(described: Student, implementation: str) -> torch.nn.Module:
    """Load a model, with eager attention if the architecture supports no other; its heads are then hidden."""
    try:
        return load_model(described, implementation)
    except ValueError as error:
        if implementation == IMPLEMENTATION:
            raise StudentError(
                f"'{described.architecture}' has its own attention code, which does not expose relations",
                hint="Use `hidden` instead of `relations` in [loss].",
            ) from error
        return load_model(described, "eager")


def rounding_of(student: torch.nn.Module, plan: Plan) -> Rounding | None:
    training = plan.recipe.training
    if training.rounding == NO_ROUNDING:
        return None
    tables = distill_task(plan.origin).blocks_tables
    return Rounding(student, training.rounding, training.block_size, blocks_tables=tables)


def _order(plan: Plan, steps: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    training = plan.recipe.training
    return order_of([len(example.ids) for example in plan.examples], training.batch, steps, training.seed)


def _pad(plan: Plan) -> int:
    tokenizer = plan.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(value) for value in known if value is not None)


def _identity(plan: Plan) -> dict[str, str]:
    """What a resumed run must have in common with the interrupted one."""
    return {
        "recipe": plan.recipe_sha256,
        "data": f"{plan.data.sha256} {digest(plan.examples)}",
        "teacher": str(sorted(plan.record.files.items())) if plan.record.files else plan.record.name,
        "student": str(sorted(plan.origin.files.items())),
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _checkpoint_kept(work: WorkFolder) -> Iterator[None]:
    """Keep and name the last checkpoint of an interrupted training; another failure would only repeat."""
    try:
        yield
    except (KeyboardInterrupt, InterruptedRunError):
        last = work.last_checkpoint()
        if last is None:
            work.remove()
            raise InterruptedRunError("interrupted before the first checkpoint; nothing was written") from None
        step = last.name.partition("-")[2]
        raise InterruptedRunError(
            f"interrupted; the training up to step {step} is in {work.path}",
            hint="Run the same command with --resume to continue.",
        ) from None
    except EdgeCompressError as error:
        if "--resume" not in error.hint:
            work.remove()
        raise
