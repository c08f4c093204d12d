"""The interface of a backend: a package with these modules. ``docs/adr/0026`` explains the design.

    plan.py    checks a recipe, and resolves precisions
    build.py   lowers and compiles a graph for a target, and opens it for verification on this machine
    load.py    opens a bundle's model; numpy and the backend's own runtime only
    timing.py  optional: opens models that time each node
    host.py    the backend's state on this machine, for ``edgecompress doctor``

A target names backends: "onnxruntime" on a target whose accelerator is "cuda" is the backend "onnxruntime-cuda".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgecompress.registry import PlugIn

if TYPE_CHECKING:  # for annotations only: keeps a command's help and loading on a device fast
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
    """A backend, with its modules typed as their protocols."""

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
        """None if the backend cannot time nodes."""
        return cast("TimingModule", self.plug_in.part("timing")) if self.plug_in.has("timing") else None

    @property
    def plan(self) -> PlanModule:
        return cast("PlanModule", self.plug_in.part("plan"))

    @property
    def build(self) -> BuildModule:
        return cast("BuildModule", self.plug_in.part("build"))


class PlanModule(Protocol):
    """``plan.py``. It must import fast: the command line's help uses it."""

    PROVIDERS: tuple[str, ...]
    """ONNX Runtime execution providers that a bundle needs; empty for backends without ONNX Runtime."""

    BUILDS_ENGINES: bool
    """Whether it uses a recipe's optimization profile."""

    CALIBRATES: bool
    """Whether it needs activations in every precision, to check the range of float16."""

    def precisions(self, quantizes_activations: bool) -> Mapping[str, str]:
        """Return the backend's own short names -> precisions; {}: the names of the student's kind apply.

        ``quantizes_activations``: whether int8 activations are worth trying for the student's kind.
        """

    def resolve(self, precision: str, quantizes_activations: bool | None) -> str:
        """Return the full name of a precision; names that the student's kind resolves are returned unchanged.

        ``quantizes_activations`` is None while the student is unknown: then any kind's name is accepted.
        Raises RecipeError for a precision that the backend does not support.
        """

    def check_host(self, target: Target) -> None:
        """Raises HostError if this machine cannot build for the target; called before the checkpoint is read."""

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError for a setting that the backend does not support."""

    def opset(self, target: Target) -> int:
        """Return the ONNX opset of captured graphs."""

    def stages(self, target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
        """Return (stage, description) of the backend's stages before and after a candidate is verified."""


Rebuild = Callable[[Callable[[str], bool]], "Artifact"]
"""Builds the artifact again, quantizing only layers whose name passes a predicate."""


class BackendExport(Protocol):
    """One export. ``finish`` runs for the chosen candidate only, everything else for each candidate."""

    limits: WeightLimits

    def prepare(self, name: str, graph: Graph, feeds: GraphFeeds) -> None:
        """Inspect a portable float graph before it is built."""

    def build(self, name: str, graph: Graph, folder: Path) -> Artifact:
        """Lower and compile a quantized graph. Raises RecipeError, HostError."""

    def kernels(self, artifact: Artifact, cases: Mapping[Case, Feed] | None) -> Artifact:
        """Add our kernels if they affect the choice of candidate. ``cases`` None: this machine is not the target."""

    def variants(self, artifact: Artifact) -> Sequence[Artifact]:
        """Return the variants to try: one per accuracy level if the recipe requests it, else the artifact alone."""

    def open(self, artifact: Artifact) -> Model:
        """Open a model that computes on this machine what the target computes, with the same rounding."""

    def inputs(self, artifact: Artifact) -> tuple[TensorSpec, ...]: ...

    def finish(self, artifact: Artifact, cases: Mapping[Case, Feed] | None, rebuild: Rebuild) -> Artifact:
        """Finish the chosen candidate. If its graph changes, it is verified again."""

    def contents(self, artifact: Artifact) -> ModelContents: ...

    def files(self, artifact: Artifact, *, apart: bool) -> ModelFiles:
        """Return the model's files by their names in a bundle; ``apart``: with weights in a separate file."""


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
        """Build the engine of one of a bundle's models; return its record and the files to add to the bundle.

        Only for backends that build engines. Raises EngineError, HostError.
        """


class HostModule(Protocol):
    """``host.py``. It must import fast, and work without the backend's packages."""

    PACKAGES: tuple[str, ...]
    """Python packages that run its models."""

    def state(
        self, found: Mapping[str, LibraryState], providers: Sequence[str], has: Callable[[str], bool]
    ) -> BackendState:
        """``found``: NVIDIA's libraries; ``providers``: ONNX Runtime's; ``has``: whether a module is installed."""
