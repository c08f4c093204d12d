"""The origin and terms of a student, and the source of each statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DECLARED, READ, VERIFIED, COMPUTED, NOBODY = "declared", "read from card", "verified", "computed", "nobody"
"""Source of a statement: the user; the model card; our own record, with matching hashes; the bytes themselves."""

PERMITTED, CONDITIONAL, RESTRICTED, NOT_KNOWN = "permitted", "conditional", "restricted", "unknown"
STATUSES = (PERMITTED, CONDITIONAL, RESTRICTED, NOT_KNOWN)
OFF, RECORD, WARN, ENFORCE = "off", "record", "warn", "enforce"
POLICIES = (OFF, RECORD, WARN, ENFORCE)
LINEAGE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One fact and its source. ``value`` None means unknown; it is never guessed."""

    value: str | None
    said_by: str  # one of the above; free text in lineage of schema 1
    where: str | None = None  # where it is written: "README.md", "distillation.json", "the recipe"


UNKNOWN = Statement(value=None, said_by=NOBODY)


@dataclass(frozen=True, kw_only=True)
class ProvenanceRecipe:
    """``[provenance]`` of a recipe: what the user declares about the student's origin. None: not declared."""

    policy: str = WARN  # one of POLICIES
    teacher: str | None = None
    data: str | None = None
    status: str | None = None  # one of STATUSES: what the terms allow, as the user read them
    terms_url: str | None = None
    terms_retrieved: str | None = None  # ISO date
    terms_sha256: str | None = None  # of the text on that date
    conditions: tuple[str, ...] = ()  # in words
    notices: tuple[str, ...] = ()  # licence and notice files, copied into the bundle
    name_prefix: str | None = None  # that the terms require in the name of derived models
    accept: str | None = None  # reason to export although ``enforce`` refuses; stays on record


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was declared about one checkpoint, now or when it was distilled. None of it is verified."""

    of: str  # the checkpoint
    where: str  # where it was declared: "the recipe", "distillation.json"
    status: str | None = None  # one of STATUSES
    teacher: str | None = None
    data: str | None = None
    url: str | None = None
    retrieved: str | None = None
    sha256: str | None = None
    conditions: tuple[str, ...] = ()
    name_prefix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A model from which a checkpoint, or another ancestor, was made. Read from local files only."""

    name: str
    relation: Statement  # "base model", "teacher", "starts from", or the card's own: "quantized", "finetune", …
    of: int | None = None  # index of the ancestor that was made from it; None: the checkpoint itself
    revision: Statement = UNKNOWN
    licence: Statement = UNKNOWN
    licence_name: Statement = UNKNOWN
    licence_link: Statement = UNKNOWN
    datasets: Statement = UNKNOWN
    endpoint: Statement = UNKNOWN  # of a teacher behind an API
    files: Mapping[str, str] = field(default_factory=dict)  # file -> sha256, as its student's record has them


@dataclass(frozen=True, kw_only=True)
class ResponseFile:
    """A file whose responses a student learned from; they were not requested for it."""

    name: str
    sha256: str  # of the file
    responses: int
    teacher: str | None  # as the file names it: openai:URL#MODEL; None: only --teacher does


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """The checkpoint's distillation.json. ``verified``: its hashes match these weights."""

    verified: bool
    sha256: str  # of the record
    teacher: str
    method: str
    data: str
    data_sha256: str
    recipe_sha256: str
    tool_version: str
    responses: ResponseFile | None = None


@dataclass(frozen=True, kw_only=True)
class Lineage:
    source: Statement
    revision: Statement
    licence: Statement
    base_model: Statement
    datasets: Statement
    files: Mapping[str, str] = field(default_factory=dict)  # file of the checkpoint -> computed sha256
    calibration: Statement = UNKNOWN
    licence_name: Statement = UNKNOWN
    licence_link: Statement = UNKNOWN
    base_model_relation: Statement = UNKNOWN
    calibration_sha256: Statement = UNKNOWN
    ancestors: tuple[Ancestor, ...] = ()
    distillation: Teaching | None = None
    terms: tuple[Terms, ...] = ()
    status: Statement = UNKNOWN  # the strictest that was declared
    policy: str = RECORD  # policy of the export
    accepted: Statement = UNKNOWN  # reason for exporting in spite of its status
    licences: Mapping[str, str] = field(default_factory=dict)  # file in the bundle -> where it comes from
    proposed_name: Statement = UNKNOWN  # with the prefix that its terms require
    remarks: tuple[str, ...] = ()  # contradictions that were found
    schema_version: int = LINEAGE_VERSION
