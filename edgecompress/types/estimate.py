"""What a bundle would take on hardware that is not at hand: an interval, never a bare number."""

from __future__ import annotations

from dataclasses import dataclass

ESTIMATES_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Span:
    """``low`` to ``high``; ``middle`` is between them by ratio, and is no better known than they are."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One call of one workload on one target."""

    target: str
    workload: str
    phase: str  # "call"; of a decoder "prefill" and "decode" (one step behind the prompt)
    threads: int | None  # None: a GPU, or as many as the target has cores
    ms: Span
    bound: str  # what most of the middle goes to: "compute", "memory", "overhead"
    basis: str  # what it stands on, in words
    tokens: int | None = None  # that it reads or writes, where that is its measure
    fits_memory: bool | None = None  # of the target; None: it does not say how much it has


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """One run of ``edgecompress estimate``."""

    tool_version: str
    bundle: str
    identity: str  # sha256 of the manifest
    rows: tuple[Estimate, ...]
    remarks: tuple[str, ...] = ()
    schema_version: int = ESTIMATES_SCHEMA_VERSION
