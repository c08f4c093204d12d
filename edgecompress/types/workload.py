"""What a bundle is measured on, and what its models run for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress.types.bundle import MODEL

DEFAULT_NEW_TOKENS = 32
"""Of a text that is generated."""

CALL = "call"
"""The phase of a call that has only one."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``sizes``: what the kind counts in a call: {"tokens": 128}, {"seconds": 30}. A trace has one text a call and goes
    through ``requests`` in turn."""

    name: str  # as tables show it: "8x128", "30s", or a trace's file name
    batch: int = 1  # items of a call
    sizes: Mapping[str, int] = field(default_factory=dict)
    requests: tuple[int | str, ...] = ()  # tokens of a text that is made, or the text itself


@dataclass(frozen=True, kw_only=True)
class GraphRun:
    """One run of one of a bundle's graphs.

    ``sizes``: of the symbolic axes of its inputs, by name; the axis along which a cache grows counts as what it holds
    before the run. ``shapes``: of inputs whose axes the manifest fixes and that count as less, again a cache's.
    """

    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = MODEL


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The runs of a part of a call, and the tokens that it reads or writes where that is its measure."""

    runs: tuple[GraphRun, ...]
    tokens: int | None = None
