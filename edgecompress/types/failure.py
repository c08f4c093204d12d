"""An error as a JSON document."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One error. ``hint`` may be empty; ``exit_code`` is that of the process."""

    type: str  # the class in edgecompress.errors
    message: str
    hint: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class ErrorDocument:
    """What a command prints on stdout under ``--json`` when it fails."""

    error: Failure
