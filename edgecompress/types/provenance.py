"""Where a student came from, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One fact and its authority. ``value`` None means unknown, and unknown stays unknown."""

    value: str | None
    said_by: str  # "read from the model card", "read from config.json", "computed", "declared by the user", "nobody"


@dataclass(frozen=True, kw_only=True)
class Lineage:
    source: Statement
    revision: Statement
    licence: Statement
    base_model: Statement
    datasets: Statement
    files: Mapping[str, str] = field(default_factory=dict)  # file of the checkpoint -> sha256, computed
    calibration: Statement = field(default_factory=lambda: Statement(value=None, said_by="nobody"))
    schema_version: int = 1


STATUSES = ("permitted", "conditional", "restricted", "unknown")
POLICIES = ("off", "record", "warn", "enforce")


@dataclass(frozen=True, kw_only=True)
class ProvenanceRecipe:
    """``[provenance]`` of a recipe: what the user declares of how the student came to be. None: nothing is declared."""

    policy: str = "warn"  # one of POLICIES
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
