"""The workloads that a bundle is measured on, and the runs of its models for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress.types.bundle import MODEL

DEFAULT_NEW_TOKENS = 32
"""Default number of generated tokens per text."""

CALL = "call"
"""The phase of a call with a single phase."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``sizes``: the sizes of a call, as the kind names them: {"tokens": 128}, {"seconds": 30}. A trace has one text
    per call and cycles through ``requests``."""

    name: str  # shown in tables: "8x128", "30s", or a trace's file name
    batch: int = 1  # items per call
    sizes: Mapping[str, int] = field(default_factory=dict)
    requests: tuple[int | str, ...] = ()  # number of tokens of a generated text, or the text itself


@dataclass(frozen=True, kw_only=True)
class GraphRun:
    """One run of one of a bundle's graphs.

    ``sizes``: sizes of the symbolic axes of its inputs, by name; the growing axis of a cache counts with its length
    before the run. ``shapes``: shapes of inputs whose axes are fixed in the manifest but count as smaller, such as a
    fixed-size cache.
    """

    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = MODEL


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The runs of one phase of a call, and the tokens that it reads or writes, if it is measured in tokens."""

    runs: tuple[GraphRun, ...]
    tokens: int | None = None
