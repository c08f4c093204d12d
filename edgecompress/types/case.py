"""One call of a model, to measure its latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Case:
    """Names are unique within a model.

    ``sizes``: the sizes of the call, as the kind names them: {"batch": 8, "tokens": 128}, {"seconds": 30}.
    """

    name: str  # shown in tables: "8×128", "batch 8", "a step"
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
