"""A profile's operators, grouped by the student's layers and by their gap to the roofline."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from edgecompress.types.profile import Operator, OperatorProfile, Peaks, Profile

_LAYER = re.compile(r"^(.*?\.\d+)(\.|$)")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def layer_of(module: str) -> str:
    """The layer that a module is in: ``encoder.layer.3.attention.self`` is in ``encoder.layer.3``."""
    match = _LAYER.match(module)
    return match[1] if match else module.split(".", 1)[0] or "the rest"


def last_operators(profile: Profile) -> list[tuple[OperatorProfile, Peaks]]:
    """Every phase of the last shape with the most threads: the one that reports show in full."""
    if not profile.operators:
        return []
    threads = max(found.threads for found in profile.operators)
    workload = [found for found in profile.operators if found.threads == threads][-1].workload
    peaks = next(each for each in profile.peaks if each.threads == threads)
    return [(found, peaks) for found in profile.operators if (found.workload, found.threads) == (workload, threads)]


def moved_bytes(found: OperatorProfile) -> int:
    """Everything that a call moves: a cache must hold that much for the next call to hit it."""
    return sum(each.bytes for each in found.operators)


@dataclass(frozen=True, kw_only=True)
class Worth:
    """The same operator in every layer."""

    what: str  # "EncoderLayer of encoder.layer.*"
    nodes: int
    ms: float
    roof_ms: float
    bound: str  # of most of them


def most_worth(profile: OperatorProfile, number: int = 3) -> list[Worth]:
    """The operators furthest above their roof, in ms: where most time can be gained."""
    groups: dict[str, list[Operator]] = defaultdict(list)
    for operator in profile.operators:
        module = _NUMBER.sub(".*", operator.module)
        groups[f"{operator.op} of {module}" if module else operator.op].append(operator)
    found = [
        Worth(
            what=what,
            nodes=len(same),
            ms=sum(each.ms for each in same),
            roof_ms=sum(each.roof_ms for each in same),
            bound=max(same, key=lambda each: each.roof_ms).bound,
        )
        for what, same in groups.items()
    ]
    return sorted(found, key=lambda each: each.roof_ms - each.ms)[:number]
