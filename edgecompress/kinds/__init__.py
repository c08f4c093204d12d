"""Kinds of students. A kind is one folder with the modules that :mod:`edgecompress.kinds.base` describes."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.kinds.base import Kind
from edgecompress.registry import look_up, plug_ins

GROUP = "edgecompress.kinds"
"""Entry points of other packages: name of the kind = its package."""

KINDS = {
    "encoder": "edgecompress.kinds.encoder",
    "vision": "edgecompress.kinds.vision",
    "decoder": "edgecompress.kinds.decoder",
}
"""Ours."""


def kinds() -> Mapping[str, Kind]:
    """Every kind that is installed, ours first."""
    return {name: Kind(found) for name, found in plug_ins(GROUP, tuple(KINDS.items())).items()}


def known_tasks() -> tuple[str, ...]:
    """What students of all kinds are for."""
    return tuple(task for kind in kinds().values() for task in kind.tasks)


def find_kind(name: str) -> Kind:
    """Raises UsageError if there is none of that name."""
    return Kind(look_up("kind of student", name, GROUP, KINDS))
