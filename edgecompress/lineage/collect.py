"""Collects lineage from a checkpoint's files and from the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgecompress.lineage.card import Card, read_card
from edgecompress.lineage.distilled import DistillationLineage, read_distillation, terms_of
from edgecompress.lineage.notices import find_notices
from edgecompress.lineage.policy import objection
from edgecompress.types.distill import RECORD, TeacherRecord
from edgecompress.types.provenance import (
    COMPUTED,
    CONDITIONAL,
    DECLARED,
    OFF,
    PERMITTED,
    READ,
    RESTRICTED,
    UNKNOWN,
    VERIFIED,
    Ancestor,
    Lineage,
    ProvenanceRecipe,
    Statement,
    Terms,
)

RECIPE = "the recipe"
_NARROWEST_FIRST = (RESTRICTED, CONDITIONAL, PERMITTED)
_DEEPEST = 16  # generations


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint. ``files``: name -> sha256."""

    source: str  # as given: a folder or a hub id
    path: Path
    revision: str | None  # of a hub id
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """Without parent folders, which are private."""
        return self.source if self.revision is not None else Path(self.source).resolve().name


@dataclass(frozen=True, kw_only=True)
class LineageFiles:
    """A checkpoint's lineage. ``notices``: path in the bundle -> the file to copy there."""

    lineage: Lineage
    notices: Mapping[str, Path]


def collect(checkpoint: Checkpoint, recipe: ProvenanceRecipe) -> LineageFiles:
    """Read the folder and the folders that it names; works offline.

    Raises RecipeError if a notice file declared in the recipe is missing.
    """
    card = read_card(checkpoint.path)
    name, is_hub_id = checkpoint.name, checkpoint.revision is not None
    lineage = Lineage(
        source=Statement(value=name, said_by=DECLARED),
        revision=Statement(value=checkpoint.revision, said_by=COMPUTED) if is_hub_id else UNKNOWN,
        licence=card.says("license"),
        licence_name=card.says("license_name"),
        licence_link=card.says("license_link"),
        base_model=card.says("base_model"),
        base_model_relation=card.says("base_model_relation"),
        datasets=card.says("datasets"),
        files=dict(checkpoint.files),
        policy=recipe.policy,
    )
    found = _AncestryReader(first=checkpoint.path)
    if recipe.policy != OFF:
        distilled, problem = read_distillation(checkpoint.path, checkpoint.files)
        found.remark(f"the card of {name} cannot be read: {card.problem}" if card.problem else None)
        found.remark(problem)
        found.follow(checkpoint.path, card, distilled, name, None, 0)
        lineage = replace(lineage, distillation=distilled.teaching if distilled else None)
    declared = terms_of(recipe, of=name, where=RECIPE)
    terms = (*([declared] if declared else []), *found.terms)
    notices = find_notices(checkpoint.path, name, found.folders, recipe.notices)
    lineage = replace(
        lineage,
        ancestors=tuple(found.ancestors),
        terms=terms,
        status=_status(terms),
        licences={path: notice.origin for path, notice in notices.items()},
        proposed_name=_proposed_name(terms, Path(name).name),
        remarks=(*found.remarks, *_contradictions(terms)),
    )
    if recipe.accept is not None and objection(lineage) is not None:
        lineage = replace(lineage, accepted=Statement(value=recipe.accept, said_by=DECLARED, where=RECIPE))
    return LineageFiles(lineage=lineage, notices={path: notice.path for path, notice in notices.items()})


@dataclass
class _AncestryReader:
    """Collects what each generation of a checkpoint's ancestors states."""

    first: Path  # the checkpoint's folder
    ancestors: list[Ancestor] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)  # ancestor -> its folder, if it exists
    remarks: list[str] = field(default_factory=list)

    def remark(self, text: str | None) -> None:
        if text is not None and text not in self.remarks:
            self.remarks.append(text)

    def follow(
        self, folder: Path, card: Card, distilled: DistillationLineage | None, name: str, place: int | None, depth: int
    ) -> None:
        """Read the ancestors of the checkpoint in ``folder``, and their ancestors."""
        if depth >= _DEEPEST:
            self.remark(f"the chain of base models is longer than {_DEEPEST}; the rest is omitted")
            return
        taught: set[str] = set()
        if distilled is not None:
            record, verified = distilled.record, distilled.teaching.verified
            said_by = VERIFIED if verified else DECLARED
            self._recorded("teacher", record.teacher, said_by, place)
            taught.add(record.teacher.name)
            terms = terms_of(record.provenance, of=name, where=RECORD)
            if terms is not None:
                self.terms.append(terms)
            if record.start is not None:
                taught.add(record.start.name)
                self._start(folder, distilled, record.start, said_by, place, depth)
        relation = card.says("base_model_relation")
        if relation.value is None:
            relation = Statement(value="base model", said_by=READ, where="README.md")
        for base in card.values("base_model"):
            if base not in taught:
                self._step(folder, base, relation, place, depth)

    def _start(
        self,
        folder: Path,
        distilled: DistillationLineage,
        start: TeacherRecord,
        said_by: str,
        of: int | None,
        depth: int,
    ) -> None:
        """The student's first checkpoint: with its ancestors if its folder exists, else as recorded."""
        if distilled.start is not None and _where(folder, distilled.start) is not None:
            relation = Statement(value="starts from", said_by=said_by, where="distill.toml")
            self._step(folder, distilled.start, relation, of, depth)
        else:
            self._recorded("starts from", start, said_by, of)

    def _recorded(self, relation: str, teacher: TeacherRecord, said_by: str, of: int | None) -> None:
        def says(value: str | None) -> Statement:
            return Statement(value=value, said_by=said_by, where=RECORD) if value else UNKNOWN

        self.ancestors.append(
            Ancestor(
                name=teacher.name,
                relation=says(relation),
                of=of,
                revision=says(teacher.revision),
                licence=says(teacher.licence),
                endpoint=says(teacher.endpoint),
                files=dict(teacher.files),
            )
        )
        if teacher.base_model:
            place = len(self.ancestors) - 1
            self.ancestors.append(Ancestor(name=teacher.base_model, relation=says("base model"), of=place))

    def _step(self, folder: Path, base: str, relation: Statement, of: int | None, depth: int) -> None:
        """Add one ancestor, named by a folder or a hub id; read the folder if it exists."""
        there = _where(folder, base)
        if there is None:
            local = base.startswith((".", "/", "~"))
            self.ancestors.append(Ancestor(name=Path(base).name if local else base, relation=relation, of=of))
            return
        name = there.name
        if there == self.first.resolve() or there in self.folders.values():
            self.remark(f"the chain of base models returns to {name}; it ends there")
            return
        card = read_card(there)
        self.folders[name if name not in self.folders else f"{name}-{len(self.folders)}"] = there
        self.ancestors.append(
            Ancestor(
                name=name,
                relation=relation,
                of=of,
                licence=card.says("license"),
                licence_name=card.says("license_name"),
                licence_link=card.says("license_link"),
                datasets=card.says("datasets"),
            )
        )
        self.remark(f"the card of {name} cannot be read: {card.problem}" if card.problem else None)
        # An ancestor's weights are not hashed, so its record counts as declared.
        distilled, problem = read_distillation(there, None)
        self.remark(problem)
        self.follow(there, card, distilled, name, len(self.ancestors) - 1, depth + 1)


def _where(folder: Path, base: str) -> Path | None:
    """The folder of ``base`` if it is written as a path; "owner/name" is always a hub id."""
    if not base.startswith((".", "/", "~")):
        return None
    path = Path(base).expanduser()
    found = (path.resolve(),) if path.is_absolute() else ((folder / path).resolve(), path.resolve())
    return next((path for path in found if (path / "config.json").is_file()), None)


def _status(terms: tuple[Terms, ...]) -> Statement:
    """The narrowest declared status; "unknown" if only that is declared."""
    for status in (*_NARROWEST_FIRST, "unknown"):
        for entry in terms:
            if entry.status == status:
                return Statement(value=status, said_by=DECLARED, where=f"{entry.where}, of {entry.of}")
    return UNKNOWN


def _contradictions(terms: tuple[Terms, ...]) -> tuple[str, ...]:
    known = [entry for entry in terms if entry.status in _NARROWEST_FIRST]
    if len({entry.status for entry in known}) < 2:
        return ()
    said = ", ".join(f"{entry.status} ({entry.where}, of {entry.of})" for entry in known)
    return (f"conflicting terms are declared; the narrowest applies: {said}",)


def _proposed_name(terms: tuple[Terms, ...], name: str) -> Statement:
    entry = next((entry for entry in terms if entry.name_prefix), None)
    if entry is None or entry.name_prefix is None:
        return UNKNOWN
    prefix = entry.name_prefix.rstrip("-_ ")
    proposed = name if name.lower().startswith(prefix.lower()) else f"{prefix}-{name}"
    return Statement(value=proposed, said_by=DECLARED, where=f"{entry.where}, of {entry.of}")
