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
