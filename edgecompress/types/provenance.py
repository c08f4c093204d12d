"""Where a student came from, under which terms, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DECLARED, READ, VERIFIED, COMPUTED, NOBODY = "declared", "read from card", "verified", "computed", "nobody"
"""Who says something: the user; the model card; a record of ours whose hashes are the files'; these very bytes."""

PERMITTED, CONDITIONAL, RESTRICTED, NOT_KNOWN = "permitted", "conditional", "restricted", "unknown"
STATUSES = (PERMITTED, CONDITIONAL, RESTRICTED, NOT_KNOWN)
OFF, RECORD, WARN, ENFORCE = "off", "record", "warn", "enforce"
POLICIES = (OFF, RECORD, WARN, ENFORCE)
LINEAGE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One fact and its authority. ``value`` None means unknown, and unknown stays unknown."""

    value: str | None
    said_by: str  # one of the above; lineage of schema 1 says it in words of its own
    where: str | None = None  # that it stands written: "README.md", "distillation.json", "the recipe"


UNKNOWN = Statement(value=None, said_by=NOBODY)


@dataclass(frozen=True, kw_only=True)
class ProvenanceRecipe:
    """``[provenance]`` of a recipe: what the user declares of how the student came to be. None: nothing is declared."""

    policy: str = WARN  # one of POLICIES
    teacher: str | None = None
    data: str | None = None
    status: str | None = None  # one of STATUSES: what the terms allow, as the user read them
    terms_url: str | None = None
    terms_retrieved: str | None = None  # ISO date
    terms_sha256: str | None = None  # of the text as it was then
    conditions: tuple[str, ...] = ()  # in words
    notices: tuple[str, ...] = ()  # licence and notice files, copied into the bundle
    name_prefix: str | None = None  # that the terms ask of what is made from it
    accept: str | None = None  # the reason why an export went on where ``enforce`` would refuse; recorded for good


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was declared of one checkpoint, here or when it was distilled. All of it is somebody's word."""

    of: str  # the checkpoint
    where: str  # it was declared: "the recipe", "distillation.json"
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
    """What a checkpoint, or another ancestor, was made of. Only what lies here was read; nothing was looked up."""

    name: str
    relation: Statement  # "base model", "teacher", "starts from", or what the card says: "quantized", "finetune", …
    of: int | None = None  # the place among the ancestors of what came of it; None: the checkpoint itself
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
    """What the checkpoint's distillation.json says. ``verified``: the hashes in it are those of these weights."""

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
    files: Mapping[str, str] = field(default_factory=dict)  # file of the checkpoint -> sha256, computed
    calibration: Statement = UNKNOWN
    licence_name: Statement = UNKNOWN
    licence_link: Statement = UNKNOWN
    base_model_relation: Statement = UNKNOWN
    calibration_sha256: Statement = UNKNOWN
    ancestors: tuple[Ancestor, ...] = ()
    distillation: Teaching | None = None
    terms: tuple[Terms, ...] = ()
    status: Statement = UNKNOWN  # the narrowest that was declared
    policy: str = RECORD  # it was exported under
    accepted: Statement = UNKNOWN  # the reason why it was, in spite of its status
    licences: Mapping[str, str] = field(default_factory=dict)  # file in the bundle -> where it comes from
    proposed_name: Statement = UNKNOWN  # with the prefix that its terms ask for
    remarks: tuple[str, ...] = ()  # what does not fit together
    schema_version: int = LINEAGE_VERSION
