"""Lineage of a student: what its card says, what its files are, and who says so. Nothing is inferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edgecompress.types.provenance import Lineage, Statement
from edgecompress.types.student import Student

_CARD = "read from the model card"
_NOBODY = Statement(value=None, said_by="nobody")


def read_lineage(student: Student, calibration_source: str) -> Lineage:
    """What is not written in the card stays unknown: no base model is guessed from a name or a shape."""
    card = _front_matter(student)
    is_hub_id = student.revision is not None
    return Lineage(
        source=Statement(
            value=student.source if is_hub_id else Path(student.source).name, said_by="declared by the user"
        ),
        revision=Statement(value=student.revision, said_by="computed") if is_hub_id else _NOBODY,
        licence=_statement(card.get("license_name") or card.get("license")),
        base_model=_statement(card.get("base_model")),
        datasets=_statement(card.get("datasets")),
        files=dict(student.files),
        calibration=Statement(value=calibration_source, said_by="computed"),
    )


def _statement(value: Any) -> Statement:
    if isinstance(value, list):
        value = ", ".join(str(v) for v in value)
    return Statement(value=str(value), said_by=_CARD) if value else _NOBODY


def _front_matter(student: Student) -> dict[str, Any]:
    path = student.path / "README.md"
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    try:
        data = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}
