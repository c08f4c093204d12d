"""A checkpoint's model card: the lineage in its front matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.types.provenance import READ, UNKNOWN, Statement

CARD = "README.md"
_SAYS_NOTHING = ("unknown", "other")  # licence ids of the hub; ``other`` has a name in ``license_name``


@dataclass(frozen=True, kw_only=True)
class Card:
    """``problem``: why the front matter cannot be read, if so."""

    front: Mapping[str, Any]
    exists: bool
    problem: str | None = None

    def says(self, key: str) -> Statement:
        values = self.values(key)
        return Statement(value=", ".join(values), said_by=READ, where=CARD) if values else UNKNOWN

    def values(self, key: str) -> tuple[str, ...]:
        found = self.front.get(key)
        items = found if isinstance(found, list) else [found]
        return tuple(" ".join(str(item).split()) for item in items if item not in (None, "", {}, []))


def read_card(folder: Path) -> Card:
    """Read the front matter of ``folder``'s README.md; empty if there is none."""
    import yaml  # a device reads recorded lineage without it

    path = folder / CARD
    if not path.is_file():
        return Card(front={}, exists=False)
    text = path.read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return Card(front={}, exists=True)
    matter, closed, _ = text[4:].partition("\n---")
    if not closed:
        return Card(front={}, exists=True, problem="its front matter has no closing --- line")
    try:
        front = yaml.safe_load(matter)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 2} column {mark.column + 1}" if mark is not None else ""
        return Card(front={}, exists=True, problem=f"its front matter is not YAML{place}")
    if front is None:
        return Card(front={}, exists=True)
    if not isinstance(front, dict):
        return Card(front={}, exists=True, problem="its front matter is not a mapping")
    return Card(front=front, exists=True)


def is_licence(licence: Statement, name: Statement) -> bool:
    """Whether a licence is named: ``unknown`` is none, and ``other`` needs a ``license_name``."""
    return name.value is not None or (licence.value is not None and licence.value.lower() not in _SAYS_NOTHING)
