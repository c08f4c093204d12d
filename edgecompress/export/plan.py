"""Plans an export: resolves a recipe with the student's kind and the target's backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgecompress.backends import backend_for, backends, target_names
from edgecompress.backends.base import Backend
from edgecompress.errors import RecipeError, nearest
from edgecompress.formats.cpu import host_cores
from edgecompress.formats.recipe import validate_recipe
from edgecompress.kinds import find_kind, kinds, known_tasks
from edgecompress.kinds.base import Estimate, Format, Kind
from edgecompress.kinds.checkpoints import load_student
from edgecompress.lineage.collect import Checkpoint, LineageFiles, collect
from edgecompress.lineage.policy import check
from edgecompress.targets import computable, find_target, matches_host, require_backend, require_precision
from edgecompress.types.precision import AUTO, PRECISIONS
from edgecompress.types.recipe import BUNDLE, EngineRecipe, Recipe
from edgecompress.types.student import Student
from edgecompress.types.target import Target


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved export. ``estimate`` is rough: it comes from the student's size alone."""

    recipe: Recipe  # resolved: values from the checkpoint and the target are filled in
    student: Student
    kind: Kind
    origin: LineageFiles  # the student's origin
    warning: str | None  # from the provenance policy, one line
    target: Target
    backend: Backend
    format: Format | None  # None: a bundle only
    candidates: tuple[str, ...]
    measured_here: bool  # False: this machine does not match the target, so no latency is measured
    threads: int  # of sessions on this machine
    stages: tuple[Stage, ...]
    estimate: Estimate


def plan(recipe: Recipe) -> Plan:
    """Resolve the recipe against the checkpoint and the target, without computing anything.

    Raises StudentError, UnknownTargetError, RecipeError, HostError or ProvenanceError as the export itself would.
    """
    validate_recipe(recipe)
    check_names(recipe)
    target = find_target(recipe.target)
    name = require_backend(target, recipe.backend)
    backend = backend_for(name, target.accelerator)
    if recipe.precision != AUTO:
        require_precision(target, short_precisions().get(recipe.precision, recipe.precision))
    backend.plan.resolve(recipe.precision, None)
    backend.plan.check_host(target)
    student = load_student(recipe.student)
    kind = find_kind(student.kind)
    kind.plan.check(recipe, student)
    backend.plan.check(replace(recipe, backend=name))
    precision = _resolve_precision(recipe, kind, backend, student)
    resolved = replace(
        recipe,
        backend=name,
        precision=precision,
        student=replace(
            recipe.student,
            revision=student.revision,
            task=student.task,
            max_length_tokens=student.max_length_tokens,
        ),
        runtime=replace(recipe.runtime, threads=recipe.runtime.threads or target.cores),
        engine=_resolve_engine(recipe, kind, backend, student, name),
    )
    form = _find_format(resolved, kind, student)
    candidates = _candidates(resolved, kind, target)
    measured_here = not matches_host(target)
    origin = collect(
        Checkpoint(source=student.source, path=student.path, revision=student.revision, files=student.files),
        resolved.provenance,
    )
    return Plan(
        recipe=resolved,
        student=student,
        kind=kind,
        origin=origin,
        warning=check(origin.lineage, resolved.provenance.policy),
        target=target,
        backend=backend,
        format=form,
        candidates=candidates,
        measured_here=measured_here,
        threads=resolved.runtime.threads or host_cores(),
        stages=_stages(resolved, student, kind, backend, target, form, candidates, measured_here=measured_here),
        estimate=kind.plan.estimate(resolved, student, candidates),
    )


def check_names(recipe: Recipe) -> None:
    """Raises RecipeError if the precision, format, backend or task is unknown."""
    _one_of("precision", recipe.precision, (AUTO, *PRECISIONS, *short_precisions()))
    _one_of("format", recipe.format, (BUNDLE, *(form.name for form in formats())))
    if recipe.backend is not None:
        _one_of("backend", recipe.backend, tuple(dict.fromkeys((*target_names(), *backends()))))
    if recipe.student.task is not None:
        _one_of("task", recipe.student.task, known_tasks())


def short_precisions() -> dict[str, str]:
    """Short precision name of any kind of student -> its full name."""
    return {short: name for kind in kinds().values() for short, name in kind.plan.SHORT_PRECISIONS.items()}


def formats() -> tuple[Format, ...]:
    """The formats of all kinds of student, besides the bundle."""
    return tuple(form for kind in kinds().values() for form in kind.plan.FORMATS)


def _resolve_precision(recipe: Recipe, kind: Kind, backend: Backend, student: Student) -> str:
    """The full precision name. Raises RecipeError for a short name that this kind of student does not have."""
    precision = backend.plan.resolve(recipe.precision, kind.plan.QUANTIZES_ACTIVATIONS)
    precision = kind.plan.SHORT_PRECISIONS.get(precision, precision)
    if precision not in (AUTO, *PRECISIONS):
        theirs = next(other.name for other in kinds().values() if precision in other.plan.SHORT_PRECISIONS)
        raise RecipeError(
            f"'{precision}' is a short name for {theirs}s only, and this student's task is {student.task}",
            hint=f"Give one of {', '.join(name for name in PRECISIONS if name.startswith(precision))}.",
        )
    return precision


def _resolve_engine(recipe: Recipe, kind: Kind, backend: Backend, student: Student, name: str) -> EngineRecipe:
    """The optimization profile with defaults. Raises RecipeError if the backend builds no engine."""
    if backend.plan.BUILDS_ENGINES:
        return kind.plan.engine_profile(recipe.engine, student)
    if recipe.engine != EngineRecipe():
        builders = " or ".join(each.name for each in backends().values() if each.plan.BUILDS_ENGINES)
        raise RecipeError(
            f"the --engine options are for engines, and the backend {name} builds none",
            hint=f"Leave out the --engine options, or give --backend {builders}.",
        )
    return recipe.engine


def _find_format(recipe: Recipe, kind: Kind, student: Student) -> Format | None:
    """Raises RecipeError if the format is for another kind of student, or cannot load our kernels."""
    if recipe.format == BUNDLE:
        return None
    form = next(form for form in formats() if form.name == recipe.format)
    if not form.custom_ops and recipe.runtime.kernels not in ("auto", "none"):
        raise RecipeError(
            f"{form.title} cannot load our kernels",
            hint="Leave out --kernels, or leave out --format to export a bundle.",
        )
    if form not in kind.plan.FORMATS:
        theirs = " and ".join(f"{other.name}s" for other in kinds().values() if form in other.plan.FORMATS)
        raise RecipeError(
            f"{form.title} runs {theirs} only, and this student's task is {student.task}",
            hint="Leave out --format; a bundle's model.onnx also runs in plain onnxruntime.",
        )
    return form


def _candidates(recipe: Recipe, kind: Kind, target: Target) -> tuple[str, ...]:
    """Raises RecipeError if this kind of student cannot be exported in the given precision."""
    if recipe.precision == AUTO:
        names: Sequence[str] = [name for name in computable(target) if PRECISIONS[name].searched]
    else:
        names = (recipe.precision,)
    candidates = kind.plan.candidates(names, target.accelerator)
    if not candidates:
        known = kind.plan.candidates(tuple(PRECISIONS), target.accelerator)
        article = "an" if kind.name[0] in "aeiou" else "a"
        raise RecipeError(
            f"{article} {kind.name} cannot be exported as {recipe.precision}",
            hint=f"Give one of --precision {', '.join((AUTO, *known))}.",
        )
    return candidates


def _stages(
    recipe: Recipe,
    student: Student,
    kind: Kind,
    backend: Backend,
    target: Target,
    form: Format | None,
    candidates: Sequence[str],
    *,
    measured_here: bool,
) -> tuple[Stage, ...]:
    calibrates = backend.plan.CALIBRATES or any(PRECISIONS[name].calibrated for name in candidates)
    before, after = backend.plan.stages(target)
    rows = [
        *kind.plan.stages(recipe, student, calibrates=calibrates),
        ("quantize", ", ".join(candidates)),
        *before,
        ("verify", f"{recipe.quality.samples} held-out samples against PyTorch"),
        *after,
    ]
    if measured_here:
        rows.append(("measure", "latency on this machine, candidates in turn"))
    if form is not None:
        rows.append((form.name, form.description))
    rows.append(("bundle", "manifest, hashes, lineage and SBOM; written to a temporary folder, then renamed"))
    return tuple(Stage(name=name, description=description) for name, description in rows)


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"no {what} named '{value}'.{nearest(value, known)}", hint=f"Known: {', '.join(known)}.")
