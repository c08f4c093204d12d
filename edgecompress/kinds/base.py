"""What a kind of student is: one package with these modules. ``docs/adr/0026`` says why, and what will come to fit it.

    tasks.py     TASKS: what its students are for
    plan.py      what it asks of a recipe, before anything is computed
    student.py   whether a checkpoint is one, and what it says
    export.py    one export: samples, capture, reference, fidelity (capture.py, samples.py, reference.py, metric.py)
    metric.py    answers against answers: what fidelity is called, and the budget
    check.py     a bundle against the reference's answers that it carries, on the device
    runtime.py   what ``load()`` returns; numpy, onnxruntime, tokenizers only
    card.py      how a bundle's README shows its use
    inspect.py   what ``edgecompress inspect`` shows of it alone; there is none where that is nothing
    run.py       what ``edgecompress run`` does with it
    profile.py   workloads, and a bundle as something that is timed
    serve.py     its endpoints; there is none where it is not served
    distill.py   how such a student is taught; there is none where it is not
    architectures.py  ARCHITECTURES: which were tried, and what came of it; there is none where none was

Nothing is imported before it is asked for: a device imports ``runtime``, and never what an export needs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgecompress.registry import PlugIn

if TYPE_CHECKING:  # for annotations alone: neither a command's help nor a device that loads a bundle waits for them
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

REFERENCE_BYTES = 300_000  # of the reference's answers that travel with a bundle, for `edgecompress verify`


@dataclass(frozen=True)
class Kind:
    """A kind by name; its modules as what they fulfil."""

    plug_in: PlugIn

    @property
    def name(self) -> str:
        return self.plug_in.name

    def has(self, part: str) -> bool:
        """Whether it has that module: some are a kind's own choice."""
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
        """The task of the checkpoint if it is of this kind; ``task``: what the user named, of any kind, or None.

        Raises StudentError for what is of this kind and cannot be exported.
        """

    def read(self, checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
        """Raises StudentError, in one line, for whatever is wrong with the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Something that a bundle can be beside a bundle."""

    name: str
    title: str  # of the program that reads it
    description: str  # of the stage that writes it
    custom_ops: bool  # whether that program can load our kernels


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """For planning: from the student's size alone."""

    ram_bytes: int
    disk_bytes: int
    seconds: int


class PlanModule(Protocol):
    """``plan.py``: light, since the command line's help reads it."""

    SHORT_PRECISIONS: Mapping[str, str]
    """Names that mean one precision for this kind: {"int4": "int4-weights"}."""

    QUANTIZES_ACTIVATIONS: bool
    """Whether 8 bits for what layers read are worth trying: not where activations have outliers."""

    FORMATS: tuple[Format, ...]
    """What it can be written as beside a bundle."""

    def candidates(self, names: Sequence[str], accelerator: str) -> tuple[str, ...]:
        """Those of the precisions that such a student is exported as where that accelerator computes."""

    def check(self, recipe: Recipe, student: Student) -> None:
        """Raises RecipeError for what is asked of such a student and makes no sense."""

    def engine_profile(self, recipe: EngineRecipe, student: Student) -> EngineRecipe:
        """The shapes of an engine with everything filled in that the student decides. Raises RecipeError."""

    def estimate(self, recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate: ...

    def stages(self, recipe: Recipe, student: Student, *, calibrates: bool) -> Sequence[tuple[str, str]]:
        """(stage, what it does) of what comes before quantization: capture, calibrate.

        ``calibrates``: whether a candidate, or the backend, looks at activations.
        """


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Where samples came from, for the report and the lineage."""

    text: str  # "built-in: …", a file's name
    sha256: str | None = None  # None: they were made up


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a bundle has of its kind, beside models."""

    settings: Any  # the kind's record, a frozen dataclass
    reference: bytes  # the reference's answers for held-out samples, as an .npz file
    notes: tuple[str, ...] = ()
    files: Mapping[str, Content] = field(default_factory=dict)
    kv_cache: QuantizedCache | None = None
    # From the models' files as the bundle has them, their weights apart, to others that share those weights.
    sharing: Callable[[Mapping[str, Path]], Mapping[str, Content]] | None = None


Open = Callable[["Artifact"], "Model"]
"""What the target computes, on this machine."""


class KindExport(Protocol):
    """One export of a student, each stage called once and in this order; ``fidelity`` for every candidate."""

    costly_samples: int
    """On how many samples each layer alone is tried, to name those that cost most; 0: it would take too long."""

    def samples(self) -> SampleSource:
        """Find calibration and held-out inputs, and say where they came from. Raises CalibrationError."""

    def capture(self, opset: int) -> Mapping[str, Graph]:
        """The student's graphs by name. Raises StudentError if it cannot be captured."""

    def reference(self, captured: Mapping[str, Graph]) -> None:
        """Take the reference's answers, and hold what was captured against them. Raises StudentError."""

    def feeds(self, name: str) -> GraphFeeds:
        """What that graph is calibrated on."""

    def cases(self, name: str, inputs: Sequence[TensorSpec]) -> Mapping[Case, Feed]:
        """What a model of that graph is timed on; ``inputs`` are the model's."""

    def candidate(self, artifacts: Mapping[str, Artifact], open_model: Open) -> Mapping[str, Artifact]:
        """What the kind does to a candidate once it is built; as a rule nothing."""

    def fidelity(self, models: Mapping[str, Model], samples: int | None = None) -> Fidelity:
        """Models by the names of their graphs against the reference, on the first ``samples`` inputs if given."""

    def parts(
        self, artifacts: Mapping[str, Artifact], inputs: Mapping[str, Sequence[TensorSpec]], fidelity: Fidelity
    ) -> Parts:
        """What the bundle has of the kind; ``inputs`` are those of each model that was chosen."""


class ExportModule(Protocol):
    """``export.py``."""

    def begin(self, job: Job) -> KindExport: ...


class MetricModule(Protocol):
    """``metric.py``: numpy alone, so that a device can check itself."""

    def figures(self, fidelity: Fidelity) -> Sequence[Figure]:
        """Those that apply, the one that is judged first."""

    def quality(self, fidelity: Fidelity) -> float:
        """One number, the higher the nearer to the reference: it decides between candidates of one speed."""

    def shortfall(self, fidelity: Fidelity, quality: QualityRecipe) -> str | None:
        """Why it misses the budget, in a few words; None if it does not."""


class RuntimeModule(Protocol):
    """``runtime.py``: numpy, onnxruntime and tokenizers alone."""

    def open_bundle(self, source: OpenBundle) -> Any:
        """What ``load()`` returns: a context manager with ``manifest``, ``threads`` and ``close()``.

        Raises HostError, UsageError, BundleError.
        """

    def first_call(self, model: Any) -> None:
        """The smallest thing that it can be asked for, whole: what a cold start ends with."""


class CheckModule(Protocol):
    """``check.py``: numpy and the runtime alone."""

    def check(self, source: OpenBundle) -> Fidelity:
        """Fidelity on the samples that travel with the bundle. Raises BundleError, HostError."""


class CardModule(Protocol):
    """``card.py``."""

    def example(self, manifest: Manifest) -> Sequence[str]:
        """Lines of Python behind ``from edgecompress.runtime import load`` that use the bundle for its task.

        They open "path/to/this/folder", and work as they stand once that is the bundle's.
        """

    def rows(self, manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
        """Rows of the README's table below those of fidelity."""


class InspectModule(Protocol):
    """``inspect.py``; a kind without one has no rows of its own."""

    def rows(self, manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
        """(title, text) of lines that ``edgecompress inspect`` shows."""


class FlagGroup(Protocol):
    """A titled group of an argparse parser."""

    def add_argument(self, *names: str, **settings: Any) -> Any: ...


class RunModule(Protocol):
    """``run.py``: imports nothing heavy, for the command's help lists every kind's flags."""

    PURPOSE: str
    """What its flags are for: "text generation"."""

    def add_arguments(self, group: FlagGroup) -> None:
        """The kind's own flags; None, or False, unless they are given.

        The bundle, the inputs, ``--file`` and ``--json`` are the command's. A flag of another kind's too is that one's.
        """

    def run(self, model: Any, options: Namespace) -> int:
        """Print what ``model``, which ``load()`` returned, makes of the inputs; the exit code. Raises UsageError."""


class ServeModule(Protocol):
    """``serve.py``; a kind without one is not served."""

    PURPOSE: str
    """What is served: "embeddings of texts"."""

    MODEL: str
    """What such a model is: "an encoder"."""

    PATHS: tuple[str, ...]
    """Every path that such a model may answer: "/v1/embeddings"."""

    def endpoints(self, model: Any, name: str, lane: Lane) -> Endpoints | None:
        """Of ``model``, which ``load()`` returned and clients call ``name``; None: its task has none."""


class DistillModule(Protocol):
    """``distill.py``; students of a kind without one are not taught."""

    TASKS: Mapping[str, DistillTask]
    """How students are taught, by task."""

    def pooler(self, student: Student, device: Any) -> Callable[[Any, Any], Any] | None:
        """Hidden states [B, T, H] and a mask [B, T] -> the vectors [B, D] of the student's bundle, in torch.

        None: it has none.
        """


class ProfileModule(Protocol):
    """``profile.py``: numpy and the runtime alone."""

    COMPARED: str
    """What bundles are compared on unless something is asked for: "1x128"."""

    def default_workloads(self, manifest: Manifest) -> str:
        """What a bundle is measured on unless something is asked for: "1x16,8x128"."""

    def parse(self, text: str, manifest: Manifest) -> Workload:
        """One of them. Raises UsageError naming it."""

    def phases(self, manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
        """The runs that a call consists of; of a workload that is no trace."""

    def open_subject(self, source: OpenBundle) -> Subject:
        """Raises what ``open_bundle`` raises."""

    def inputs(self, workload: Workload, manifests: Sequence[Manifest]) -> Feed:
        """Arrays that all of these bundles take, which are compared; the same each time.

        Raises UsageError for a workload that one of them does not take, or on which nothing is compared.
        """

    def side(self, source: OpenBundle) -> Side:
        """A bundle that is compared with others, opened."""
