"""A bundle as something that is called and timed: what a kind makes of it for ``profile`` and ``compare``."""

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
    """Of calls that generate text, in seconds: those of a call an entry, but for ``first`` and ``between``."""

    new_tokens: int  # of a text
    prompt_tokens: int  # of a call
    prefill: Seconds = field(default_factory=list)
    decode: Seconds = field(default_factory=list)
    first: Seconds = field(default_factory=list)  # to the first new token of each text
    between: Seconds = field(default_factory=list)  # from one new token to the next

    def clear(self) -> None:
        for values in (self.prefill, self.decode, self.first, self.between):
            values.clear()


@dataclass(kw_only=True)
class Prepared:
    """One workload. ``stages``: seconds of each, a call an entry; empty them before what is to be counted."""

    call: Callable[[], object]
    stages: Mapping[str, Seconds]
    items: int  # of a call
    phases: Mapping[str, tuple[str, int]]  # -> the stage that it is, and how often that does what the phase does once
    tokens: TokenClock | None = None
    parts: Mapping[str, Callable[[], Mapping[str, Seconds]]] = field(default_factory=dict)
    """What a stage consists of, timed in calls of its own."""

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
        """What an application does for a request. ``new_tokens``: of each text, where text is generated.

        Raises UsageError for a workload that the bundle does not take.
        """

    def offline(self, workload: Workload, items: int) -> Callable[[], object]:
        """One call of the runtime's own batching over many items of the workload's sizes. Raises UsageError."""

    def phases(self, workload: Workload) -> Mapping[str, Callable[[], object]]:
        """The models alone: each phase as a call that does just the runs that the kind's ``phases`` lists."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Side:
    """One of several that are compared. ``run`` gives an output [B, …]. It is closed by whoever opened it."""

    run: Callable[[Feed], Array]
    close: Callable[[], None] = lambda: None
