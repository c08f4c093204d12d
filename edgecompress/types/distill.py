"""What a distillation is asked for, and the record of one that lies beside the student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress.types.provenance import ProvenanceRecipe

RECORD = "distillation.json"
"""Of a student's folder: a :class:`Distillation`."""

WHITE_BOX, BLACK_BOX = "white-box", "black-box"


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Who taught. ``files`` (name -> sha256) and ``licence`` (of its card) are those of a checkpoint."""

    kind: str  # "checkpoint" or "endpoint"
    name: str  # the folder's name, the hub id, or the endpoint's model
    revision: str | None = None
    licence: str | None = None
    base_model: str | None = None  # of its card
    endpoint: str | None = None  # scheme, host and path; never a key
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What it was taught on."""

    name: str
    sha256: str
    examples: int
    tokens: int  # that the student saw, repeats counted


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a student was made. ``weights`` are the sha256 of its files: the record is of these weights and no others."""

    tool_version: str
    method: str  # WHITE_BOX or BLACK_BOX
    teacher: TeacherRecord
    data: DataRecord
    recipe_sha256: str
    seed: int
    steps: int
    seconds: float
    versions: Mapping[str, str]  # packages that made it
    weights: Mapping[str, str]
    provenance: ProvenanceRecipe  # as declared
    schema_version: int = 1
