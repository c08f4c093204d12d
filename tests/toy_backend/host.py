"""The state of the backend on this machine. It needs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgecompress.runtime.accelerators import BackendState, LibraryState

NAME = "table"
PACKAGES: tuple[str, ...] = ()


def state(found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]) -> BackendState:
    return BackendState(name=NAME, builds=True, runs=True)
