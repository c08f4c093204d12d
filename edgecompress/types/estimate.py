"""Estimated latency on hardware that is not available, always as an interval."""

from __future__ import annotations

from dataclasses import dataclass

ESTIMATES_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Span:
    """``low`` to ``high``; ``middle`` is their geometric middle, and no more certain than they are."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One call of one workload on one target."""

    target: str
    workload: str
    phase: str  # "call"; for a decoder "prefill" or "decode" (one step after the prompt)
    threads: int | None  # None: a GPU, or as many as the target has cores
    ms: Span
    bound: str  # the largest part of ``middle``: "compute", "memory", "overhead"
    basis: str  # what it is based on, in words
    tokens: int | None = None  # read or written, if the phase is measured in tokens
    fits_memory: bool | None = None  # None: the target does not give its memory


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """One run of ``edgecompress estimate``."""

    tool_version: str
    bundle: str
    identity: str  # sha256 of the manifest
    rows: tuple[Estimate, ...]
    remarks: tuple[str, ...] = ()
    schema_version: int = ESTIMATES_SCHEMA_VERSION
