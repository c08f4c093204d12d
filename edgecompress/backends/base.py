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
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgecompress.registry import PlugIn

if TYPE_CHECKING:  # for annotations alone: neither a command's help nor a device that loads a bundle waits for them
    from edgecompress.runtime.accelerators import BackendState, LibraryState
    from edgecompress.runtime.model import Loader, Model, TimingModule
    from edgecompress.types.arrays import Feed
    from edgecompress.types.artifact import Artifact, ModelContents, ModelFiles
    from edgecompress.types.bundle import EngineRecord, Manifest, TensorSpec, Variant
    from edgecompress.types.case import Case
    from edgecompress.types.feeds import GraphFeeds
    from edgecompress.types.graph import Graph
    from edgecompress.types.job import Job
    from edgecompress.types.limits import WeightLimits
    from edgecompress.types.recipe import Recipe
    from edgecompress.types.target import Target


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

    @property
    def plan(self) -> PlanModule:
        return cast("PlanModule", self.plug_in.part("plan"))

    @property
    def build(self) -> BuildModule:
        return cast("BuildModule", self.plug_in.part("build"))


class PlanModule(Protocol):
    """``plan.py``: light, since the command line's help reads it."""

    PROVIDERS: tuple[str, ...]
    """Execution providers of ONNX Runtime that a bundle needs; none where it runs nothing."""

    BUILDS_ENGINES: bool
    """Whether a recipe's optimization profile is for it."""

    CALIBRATES: bool
    """Whether activations are looked at whatever the precision: for the range of float16."""

    def precisions(self, quantizes_activations: bool) -> Mapping[str, str]:
        """What it can be asked for -> what that means, where the names are its own; {}: those of the student's kind.

        ``quantizes_activations``: whether 8 bits for what layers read are worth trying for the student's kind.
        """

    def resolve(self, precision: str, quantizes_activations: bool | None) -> str:
        """The concrete name; what it leaves to the student's kind comes back as it is.

        ``quantizes_activations`` is None where the student is not known yet: then a name passes that any kind has.
        Raises RecipeError for a precision that it does not have.
        """

    def check_host(self, target: Target) -> None:
        """Raises HostError if this machine cannot build for the target; asked before the checkpoint is read."""

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError for what it cannot do."""

    def opset(self, target: Target) -> int:
        """The ONNX opset of captured graphs."""

    def stages(self, target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
        """(stage, what it does) of its own ones, those before a candidate is verified and those after."""


Rebuild = Callable[[Callable[[str], bool]], "Artifact"]
"""The artifact made again with those layers quantized only that a test of their names is true of."""


class BackendExport(Protocol):
    """One export. Everything but ``finish`` is done for each candidate."""

    limits: WeightLimits

    def prepare(self, name: str, graph: Graph, feeds: GraphFeeds) -> None:
        """Look at a portable float graph before anything is made of it."""

    def build(self, name: str, graph: Graph, folder: Path) -> Artifact:
        """Lower and compile a quantized graph. Raises RecipeError, HostError."""

    def kernels(self, artifact: Artifact, cases: Mapping[Case, Feed] | None) -> Artifact:
        """With kernels of our own that decide between candidates. ``cases`` None: this machine is not the target."""

    def variants(self, artifact: Artifact) -> Sequence[Artifact]:
        """What is to be tried of it: at each accuracy level, if that is asked for; else itself alone."""

    def open(self, artifact: Artifact) -> Model:
        """What the target computes, on this machine: rounded as it rounds."""

    def inputs(self, artifact: Artifact) -> tuple[TensorSpec, ...]: ...

    def finish(self, artifact: Artifact, cases: Mapping[Case, Feed] | None, rebuild: Rebuild) -> Artifact:
        """What is done for the chosen candidate only. If its graph becomes another one, it is verified again."""

    def contents(self, artifact: Artifact) -> ModelContents: ...

    def files(self, artifact: Artifact, *, apart: bool) -> ModelFiles:
        """The model under the names that it has in a bundle; ``apart``: its weights in a file of their own."""


class BuildModule(Protocol):
    """``build.py``."""

    def begin(self, job: Job) -> BackendExport: ...

    def build_on_device(
        self,
        manifest: Manifest,
        variant: Variant,
        folder: Path,
        scratch: Path,
        device: int | None,
        progress: Callable[[str], None],
    ) -> tuple[EngineRecord, Mapping[str, Path]]:
        """The engine of one of a bundle's models; its record, and the files that belong into the bundle.

        Only of backends that build engines. Raises EngineError, HostError.
        """


class HostModule(Protocol):
    """``host.py``. Imports nothing heavy, and runs where the backend's packages are missing."""

    PACKAGES: tuple[str, ...]
    """Distributions that run its models."""

    def state(
        self, found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]
    ) -> BackendState:
        """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
