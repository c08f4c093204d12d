"""One call of a model whose latency is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Case:
    """Names differ within a model.

    ``sizes``: what the kind counts in a call, by name: {"batch": 8, "tokens": 128}, {"seconds": 30}.
    """

    name: str  # as tables show it: "8×128", "batch 8", "a step"
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
