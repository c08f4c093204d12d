"""What a fleet of devices gave: one row a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgecompress.types.failure import Failure as Failure
from edgecompress.types.profile import Profile

FLEET_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FleetRow:
    """One job; it has a profile or a failure."""

    job: str
    bundle: str
    identity: str  # sha256 of the manifest
    target: str  # the label that it was for
    asked: tuple[str, ...]  # as flags of ``edgecompress profile``
    run: int  # tells repetitions apart
    worker: str | None = None  # that did it
    attempts: int = 1  # above 1: a worker was lost while it had it
    profile: Profile | None = None
    failure: Failure | None = None
    schema_version: int = FLEET_SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class FleetResult:
    """One run of ``edgecompress profile --fleet``."""

    tool_version: str
    rows: tuple[FleetRow, ...]  # in the order of the jobs
    found: int  # of them: had a result from an earlier run
    duplicates: int  # results that came for a job that had one; the first was kept
    retried: int  # attempts beyond the first, of all jobs
    workers: Mapping[str, int]  # label -> how many were there at first
    schema_version: int = FLEET_SCHEMA_VERSION

    @property
    def failed(self) -> tuple[FleetRow, ...]:
        return tuple(row for row in self.rows if row.failure is not None)
