"""Kinds of students. A kind is a package with the modules that :mod:`edgecompress.kinds.base` describes."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.kinds.base import Kind
from edgecompress.registry import look_up, plug_ins

GROUP = "edgecompress.kinds"
"""Entry-point group for kinds of other packages: name of the kind = its package."""

KINDS = {
    "encoder": "edgecompress.kinds.encoder",
    "vision": "edgecompress.kinds.vision",
    "decoder": "edgecompress.kinds.decoder",
}
"""Ours."""


def kinds() -> Mapping[str, Kind]:
    """All installed kinds, the built-in ones first."""
    return {name: Kind(found) for name, found in plug_ins(GROUP, tuple(KINDS.items())).items()}


def known_tasks() -> tuple[str, ...]:
    """The tasks of all kinds."""
    return tuple(task for kind in kinds().values() for task in kind.tasks)


def find_kind(name: str) -> Kind:
    """Raises UsageError if no kind has that name."""
    return Kind(look_up("kind of student", name, GROUP, KINDS))
