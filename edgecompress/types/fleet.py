"""The results of a fleet of devices, one row per job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgecompress.types.failure import Failure as Failure
from edgecompress.types.profile import Profile

FLEET_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FleetRow:
    """One job, with either a profile or a failure."""

    job: str
    bundle: str
    identity: str  # sha256 of the manifest
    target: str  # the label of the workers that it needs
    asked: tuple[str, ...]  # as flags of ``edgecompress profile``
    run: int  # number of the repetition
    worker: str | None = None  # that ran it
    attempts: int = 1  # above 1: a worker was lost while running it
    profile: Profile | None = None
    failure: Failure | None = None
    schema_version: int = FLEET_SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class FleetResult:
    """One run of ``edgecompress profile --fleet``."""

    tool_version: str
    rows: tuple[FleetRow, ...]  # in the order of the jobs
    found: int  # rows with a result from an earlier run
    duplicates: int  # extra results for a job; the first is kept
    retried: int  # attempts beyond the first, of all jobs
    workers: Mapping[str, int]  # label -> number of workers at the start
    schema_version: int = FLEET_SCHEMA_VERSION

    @property
    def failed(self) -> tuple[FleetRow, ...]:
        return tuple(row for row in self.rows if row.failure is not None)
