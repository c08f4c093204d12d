"""What a backend is: one package with these modules. ``docs/adr/0026`` says why.

    plan.py    what it asks of a recipe, and what it can be named
    build.py   lower and compile a graph for a target; what it is verified as on this machine
    load.py    a file of a bundle -> a model that runs; numpy and the backend's own runtime only
    timing.py  models whose nodes are timed one by one; there is none where it does not do that
    host.py    what of it is on this machine, for ``edgecompress doctor``

A target names backends: "onnxruntime" on a target whose accelerator is "cuda" is the backend "onnxruntime-cuda".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from edgecompress.registry import PlugIn
from edgecompress.runtime.accelerators import BackendState, LibraryState
from edgecompress.runtime.model import Loader, TimingModule


class HostModule(Protocol):
    """``host.py``. Imports nothing heavy, and runs where the backend's packages are missing."""

    PACKAGES: tuple[str, ...]
    """Distributions that run its models."""

    def state(
        self, found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]
    ) -> BackendState:
        """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
        ...


@dataclass(frozen=True)
class Backend:
    """A backend by name; its modules as what they fulfil."""

    plug_in: PlugIn

    @property
    def name(self) -> str:
        return self.plug_in.name

    @property
    def load(self) -> Loader:
        return cast("Loader", self.plug_in.part("load"))

    @property
    def host(self) -> HostModule:
        """Raises UsageError if the backend has none."""
        return cast("HostModule", self.plug_in.part("host"))

    @property
    def timing(self) -> TimingModule | None:
        """None: it does not time nodes."""
        return cast("TimingModule", self.plug_in.part("timing")) if self.plug_in.has("timing") else None
