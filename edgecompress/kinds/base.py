"""What a kind of student is: one package with these modules. ``docs/adr/0026`` says why, and what will come to fit it.

    tasks.py     TASKS: what its students are for
    plan.py      what it asks of a recipe, before anything is computed
    student.py   whether a checkpoint is one, and what it says
    export.py    one export: samples, capture, reference, fidelity (capture.py, samples.py, reference.py, metric.py)
    metric.py    answers against answers: what fidelity is called, and the budget
    runtime.py   what ``load()`` returns; numpy, onnxruntime, tokenizers only
    card.py      how a bundle's README shows its use
    run.py       what ``edgecompress run`` does with it
    profile.py   workloads, and a bundle as something that is timed
    serve.py     its endpoints; there is none where it is not served
    distill.py   how such a student is taught; there is none where it is not

Nothing is imported before it is asked for: a device imports ``runtime``, and never what an export needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from edgecompress.registry import PlugIn
from edgecompress.runtime.model import Model
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact, Content
from edgecompress.types.bundle import TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.recipe import EngineRecipe, QualityRecipe, Recipe, StudentRecipe
from edgecompress.types.report import Fidelity, Figure, QuantizedCache
from edgecompress.types.student import Student
from edgecompress.types.task import Task

REFERENCE = "reference.npz"
"""The file of a bundle that holds the reference's answers."""

REFERENCE_BYTES = 300_000  # of them that travel with a bundle, for `edgecompress verify`


@dataclass(frozen=True)
class Kind:
    """A kind by name; its modules as what they fulfil."""

    plug_in: PlugIn

    @property
    def name(self) -> str:
        return self.plug_in.name

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
    def card(self) -> CardModule:
        return cast("CardModule", self.plug_in.part("card"))

    @property
    def metric(self) -> MetricModule:
        return cast("MetricModule", self.plug_in.part("metric"))


class StudentModule(Protocol):
    """``student.py``. A checkpoint is a folder with a config.json, which has been read."""

    def matches(self, folder: Path, config: Mapping[str, Any], task: str | None) -> Task | None:
        """The task of the checkpoint if it is of this kind; ``task``: what the user named, of any kind, or None.

        Raises StudentError for what is of this kind and cannot be exported.
        """

    def read(self, folder: Path, config: Mapping[str, Any], task: Task, recipe: StudentRecipe) -> Student:
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


Open = Callable[[Artifact], Model]
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


class CardModule(Protocol):
    """``card.py``."""

    def example(self, task: str) -> Sequence[str]:
        """Lines of Python that use a bundle, once ``load`` is imported."""
