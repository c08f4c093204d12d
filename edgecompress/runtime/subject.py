"""An opened bundle that ``profile`` and ``compare`` call and time; each kind provides its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edgecompress.types.arrays import Array, Feed
from edgecompress.types.bundle import Manifest
from edgecompress.types.workload import Workload

Seconds = list[float]


@dataclass(kw_only=True)
class TokenClock:
    """Timings of calls that generate text, in seconds. One entry per call, except ``first`` and ``between``."""

    new_tokens: int  # per text
    prompt_tokens: int  # per call
    prefill: Seconds = field(default_factory=list)
    decode: Seconds = field(default_factory=list)
    first: Seconds = field(default_factory=list)  # to the first new token of each text
    between: Seconds = field(default_factory=list)  # from one new token to the next

    def clear(self) -> None:
        for values in (self.prefill, self.decode, self.first, self.between):
            values.clear()


@dataclass(kw_only=True)
class Prepared:
    """One prepared workload. ``stages``: seconds of each stage, one entry per call; call ``clear`` before measuring."""

    call: Callable[[], object]
    stages: Mapping[str, Seconds]
    items: int  # per call
    phases: Mapping[str, tuple[str, int]]  # phase -> (the stage it is part of, how often the stage runs it)
    tokens: TokenClock | None = None
    parts: Mapping[str, Callable[[], Mapping[str, Seconds]]] = field(default_factory=dict)
    """The parts of a stage, timed in separate calls."""

    def clear(self) -> None:
        for values in self.stages.values():
            values.clear()
        if self.tokens is not None:
            self.tokens.clear()


class Subject(Protocol):
    """An opened bundle."""

    manifest: Manifest
    threads: int

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Prepare what an application does for one request. ``new_tokens``: per text, for bundles that generate.

        Raises UsageError for a workload that the bundle does not accept.
        """

    def offline(self, workload: Workload, items: int) -> Callable[[], object]:
        """Return a call that runs ``items`` items of the workload's sizes in batches. Raises UsageError."""

    def phases(self, workload: Workload) -> Mapping[str, Callable[[], object]]:
        """Return each phase as a call that does only the model runs listed by the kind's ``phases``."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Side:
    """One side of a comparison. ``run`` returns an output [B, …]. The opener closes it."""

    run: Callable[[Feed], Array]
    close: Callable[[], None] = lambda: None
