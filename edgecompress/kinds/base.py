"""The interface of a kind of student: a package with these modules. ``docs/adr/0026`` explains the design.

    tasks.py     TASKS: the tasks of its students
    plan.py      checks and completes a recipe before anything is computed
    student.py   recognizes and reads a checkpoint
    export.py    one export: samples, capture, reference, fidelity (capture.py, samples.py, reference.py, metric.py)
    metric.py    compares outputs with the reference: figures of fidelity, and the budget
    check.py     checks a bundle on the device against the reference outputs that it carries
    runtime.py   what ``load()`` returns; numpy, onnxruntime, tokenizers only
    card.py      the usage example in a bundle's README
    inspect.py   optional: lines for ``edgecompress inspect``
    run.py       ``edgecompress run``
    profile.py   workloads, and timing of a bundle
    serve.py     optional: HTTP endpoints
    distill.py   optional: how such a student is trained
    architectures.py  optional: ARCHITECTURES, which were tried, with the results

Modules are imported on first use: a device imports ``runtime`` and nothing that only an export needs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgecompress.registry import PlugIn

if TYPE_CHECKING:  # for annotations only: keeps a command's help and loading on a device fast
    from edgecompress.endpoints.lane import Lane
    from edgecompress.endpoints.routes import Endpoints
    from edgecompress.runtime.bundle import OpenBundle
    from edgecompress.runtime.model import Model
    from edgecompress.runtime.subject import Side, Subject
    from edgecompress.types.arrays import Feed
    from edgecompress.types.artifact import Artifact, Content
    from edgecompress.types.bundle import Manifest, TensorSpec
    from edgecompress.types.case import Case
    from edgecompress.types.distill import DistillTask
    from edgecompress.types.feeds import GraphFeeds
    from edgecompress.types.graph import Graph
    from edgecompress.types.job import Job
    from edgecompress.types.recipe import EngineRecipe, QualityRecipe, Recipe, StudentRecipe
    from edgecompress.types.report import Fidelity, Figure, QuantizedCache, Report
    from edgecompress.types.student import Checkpoint, Student
    from edgecompress.types.task import Task
    from edgecompress.types.workload import Phase, Workload

REFERENCE_BYTES = 300_000  # limit for the reference outputs in a bundle, which `edgecompress verify` uses


@dataclass(frozen=True)
class Kind:
    """A kind, with its modules typed as their protocols."""

    plug_in: PlugIn

    @property
    def name(self) -> str:
        return self.plug_in.name

    def has(self, part: str) -> bool:
        """Whether the kind has this module; some are optional."""
        return self.plug_in.has(part)

    @property
    def tasks(self) -> Mapping[str, Task]:
        return cast("Mapping[str, Task]", self.plug_in.part("tasks").TASKS)

    @property
    def plan(self) -> PlanModule:
        return cast("PlanModule", self.plug_in.part("plan"))

    @property
    def student(self) -> StudentModule:
        return cast("StudentModule", self.plug_in.part("student"))

    @property
    def export(self) -> ExportModule:
        return cast("ExportModule", self.plug_in.part("export"))

    @property
    def metric(self) -> MetricModule:
        return cast("MetricModule", self.plug_in.part("metric"))

    @property
    def runtime(self) -> RuntimeModule:
        return cast("RuntimeModule", self.plug_in.part("runtime"))

    @property
    def check(self) -> CheckModule:
        return cast("CheckModule", self.plug_in.part("check"))

    @property
    def card(self) -> CardModule:
        return cast("CardModule", self.plug_in.part("card"))

    @property
    def inspect(self) -> InspectModule:
        return cast("InspectModule", self.plug_in.part("inspect"))

    @property
    def run(self) -> RunModule:
        return cast("RunModule", self.plug_in.part("run"))

    @property
    def serve(self) -> ServeModule:
        return cast("ServeModule", self.plug_in.part("serve"))

    @property
    def distill(self) -> DistillModule:
        return cast("DistillModule", self.plug_in.part("distill"))

    @property
    def profile(self) -> ProfileModule:
        return cast("ProfileModule", self.plug_in.part("profile"))


class StudentModule(Protocol):
    """``student.py``."""

    def matches(self, checkpoint: Checkpoint, task: str | None) -> Task | None:
        """Return the checkpoint's task, or None if it is not of this kind. ``task``: the user's choice, of any kind.

        Raises StudentError if the checkpoint is of this kind but cannot be exported.
        """

    def read(self, checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
        """Read the checkpoint. Raises StudentError, with a one-line message, if something is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Another program's format that a bundle can be written in additionally."""

    name: str
    title: str  # the program that reads it
    description: str  # of the stage that writes it
    custom_ops: bool  # whether that program can load our kernels


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Predicted cost of an export, from the student's size alone."""

    ram_bytes: int
    disk_bytes: int
    seconds: int


class PlanModule(Protocol):
    """``plan.py``. It must import fast: the command line's help uses it."""

    SHORT_PRECISIONS: Mapping[str, str]
    """Short names of precisions for this kind: {"int4": "int4-weights"}."""

    QUANTIZES_ACTIVATIONS: bool
    """Whether int8 activations are worth trying; not for kinds whose activations have outliers."""

    FORMATS: tuple[Format, ...]
    """Additional formats."""

    def candidates(self, names: Sequence[str], accelerator: str) -> tuple[str, ...]:
        """Return the precisions of ``names`` that this kind is exported in for the accelerator."""

    def check(self, recipe: Recipe, student: Student) -> None:
        """Raises RecipeError for a setting that does not apply to such a student."""

    def engine_profile(self, recipe: EngineRecipe, student: Student) -> EngineRecipe:
        """Return the recipe with the shapes that the student determines filled in. Raises RecipeError."""

    def estimate(self, recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate: ...

    def stages(self, recipe: Recipe, student: Student, *, calibrates: bool) -> Sequence[tuple[str, str]]:
        """Return (stage, description) of the stages before quantization: capture, calibrate.

        ``calibrates``: whether a candidate or the backend needs activations.
        """


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Where samples came from, for the report and the lineage."""

    text: str  # "built-in: …", a file's name
    sha256: str | None = None  # None: synthetic samples


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a bundle that its kind adds to the models."""

    settings: Any  # the kind's settings, a frozen dataclass
    reference: bytes  # the reference's outputs for held-out samples, as an .npz file
    notes: tuple[str, ...] = ()
    files: Mapping[str, Content] = field(default_factory=dict)
    kv_cache: QuantizedCache | None = None
    # From the model files in the bundle, with weights in separate files, to further files that share those weights.
    sharing: Callable[[Mapping[str, Path]], Mapping[str, Content]] | None = None


Open = Callable[["Artifact"], "Model"]
"""Opens an artifact on this machine so that it computes what the target computes."""


class KindExport(Protocol):
    """One export of a student. Each stage is called once, in this order; ``fidelity`` once per candidate."""

    costly_samples: int
    """Samples on which each layer is quantized alone, to find the costliest ones; 0: skip, it takes too long."""

    def samples(self) -> SampleSource:
        """Load calibration and held-out inputs, and return their source. Raises CalibrationError."""

    def capture(self, opset: int) -> Mapping[str, Graph]:
        """Return the student's graphs by name. Raises StudentError if it cannot be captured."""

    def reference(self, captured: Mapping[str, Graph]) -> None:
        """Compute the reference's outputs and compare the captured graphs with them. Raises StudentError."""

    def feeds(self, name: str) -> GraphFeeds:
        """Return the calibration inputs of a graph."""

    def cases(self, name: str, inputs: Sequence[TensorSpec]) -> Mapping[Case, Feed]:
        """Return the inputs on which a graph's model is timed; ``inputs`` are the model's."""

    def candidate(self, artifacts: Mapping[str, Artifact], open_model: Open) -> Mapping[str, Artifact]:
        """Modify a candidate after it is built; most kinds do nothing."""

    def fidelity(self, models: Mapping[str, Model], samples: int | None = None) -> Fidelity:
        """Compare models, by graph name, with the reference, on the first ``samples`` inputs or on all."""

    def parts(
        self, artifacts: Mapping[str, Artifact], inputs: Mapping[str, Sequence[TensorSpec]], fidelity: Fidelity
    ) -> Parts:
        """Return the kind's parts of the bundle; ``inputs`` are those of each chosen model."""


class ExportModule(Protocol):
    """``export.py``."""

    def begin(self, job: Job) -> KindExport: ...


class MetricModule(Protocol):
    """``metric.py``. NumPy only, so that a device can check itself."""

    def figures(self, fidelity: Fidelity) -> Sequence[Figure]:
        """Return the figures that apply, the one with a budget first."""

    def quality(self, fidelity: Fidelity) -> float:
        """Return one number, higher is better, that decides between equally fast candidates."""

    def shortfall(self, fidelity: Fidelity, quality: QualityRecipe) -> str | None:
        """Return why it misses the budget, in a few words, or None if it meets the budget."""


class RuntimeModule(Protocol):
    """``runtime.py``. NumPy, onnxruntime and tokenizers only."""

    def open_bundle(self, source: OpenBundle) -> Any:
        """Return what ``load()`` returns: a context manager with ``manifest``, ``threads`` and ``close()``.

        Raises HostError, UsageError, BundleError.
        """

    def first_call(self, model: Any) -> None:
        """Make the smallest complete call, which ends the measurement of a cold start."""


class CheckModule(Protocol):
    """``check.py``. NumPy and the runtime only."""

    def check(self, source: OpenBundle) -> Fidelity:
        """Return the fidelity on the samples in the bundle. Raises BundleError, HostError."""


class CardModule(Protocol):
    """``card.py``."""

    def example(self, manifest: Manifest) -> Sequence[str]:
        """Return Python lines, to follow ``from edgecompress.runtime import load``, that use the bundle for its task.

        They open "path/to/this/folder" and run unchanged once that is the bundle's path.
        """

    def rows(self, manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
        """Return rows of the README's table, shown below the fidelity rows."""


class InspectModule(Protocol):
    """``inspect.py``, optional."""

    def rows(self, manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
        """Return (title, text) of additional lines for ``edgecompress inspect``."""


class FlagGroup(Protocol):
    """A titled group of an argparse parser."""

    def add_argument(self, *names: str, **settings: Any) -> Any: ...


class RunModule(Protocol):
    """``run.py``. It must import fast: the command's help lists every kind's flags."""

    PURPOSE: str
    """Title of its flags in the help: "text generation"."""

    def add_arguments(self, group: FlagGroup) -> None:
        """Add the kind's own flags, with default None or False.

        The command adds the bundle, the inputs, ``--file`` and ``--json``. Kinds can share a flag.
        """

    def run(self, model: Any, options: Namespace) -> int:
        """Run the inputs on ``model``, from ``load()``, print the results, return the exit code. Raises UsageError."""


class ServeModule(Protocol):
    """``serve.py``, optional."""

    PURPOSE: str
    """What is served: "embeddings of texts"."""

    MODEL: str
    """The model in words: "an encoder"."""

    PATHS: tuple[str, ...]
    """All paths that such a model can serve: "/v1/embeddings"."""

    def endpoints(self, model: Any, name: str, lane: Lane) -> Endpoints | None:
        """Return the endpoints of ``model``, which clients call ``name``, or None if its task has none."""


class DistillModule(Protocol):
    """``distill.py``, optional."""

    TASKS: Mapping[str, DistillTask]
    """How students are trained, by task."""

    def pooler(self, student: Student, device: Any) -> Callable[[Any, Any], Any] | None:
        """Return a torch function from hidden states [B, T, H] and mask [B, T] to the bundle's vectors [B, D].

        None if the student has no pooling.
        """


class ProfileModule(Protocol):
    """``profile.py``. NumPy and the runtime only."""

    COMPARED: str
    """Default workload of ``compare``: "1x128"."""

    def default_workloads(self, manifest: Manifest) -> str:
        """Default workloads of ``profile``: "1x16,8x128"."""

    def parse(self, text: str, manifest: Manifest) -> Workload:
        """Parse one workload. Raises UsageError naming it."""

    def phases(self, manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
        """Return the model runs of one call. The workload must not be a trace."""

    def open_subject(self, source: OpenBundle) -> Subject:
        """Open the bundle for timing. Raises the errors of ``open_bundle``."""

    def inputs(self, workload: Workload, manifests: Sequence[Manifest]) -> Feed:
        """Return reproducible arrays that all of the compared bundles accept.

        Raises UsageError for a workload that one of them does not accept, or that cannot be compared.
        """

    def side(self, source: OpenBundle) -> Side:
        """Open a bundle for a comparison."""
