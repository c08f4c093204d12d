"""What a kind of student is: one package with these modules. ``docs/adr/0026`` says why, and what will come to fit it.

    tasks.py     TASKS: what its students are for
    plan.py      what it asks of a recipe, before anything is computed
    student.py   whether a checkpoint is one, and what it says
    export.py    one export: samples, capture, reference, fidelity (capture.py, samples.py, reference.py, metric.py)
    metric.py    answers against answers: what fidelity is called, and the budget
    check.py     a bundle against the reference's answers that it carries, on the device
    runtime.py   what ``load()`` returns; numpy, onnxruntime, tokenizers only
    card.py      how a bundle's README shows its use
    run.py       what ``edgecompress run`` does with it
    profile.py   workloads, and a bundle as something that is timed
    serve.py     its endpoints; there is none where it is not served
    distill.py   how such a student is taught; there is none where it is not

Nothing is imported before it is asked for: a device imports ``runtime``, and never what an export needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgecompress.registry import PlugIn
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import Manifest
from edgecompress.types.case import Case
from edgecompress.types.job import Job
from edgecompress.types.recipe import EngineRecipe, QualityRecipe, Recipe, StudentRecipe
from edgecompress.types.report import Fidelity
from edgecompress.types.student import Student
from edgecompress.types.task import Task

if TYPE_CHECKING:  # a device that starts does not wait for what it does not use
    from edgecompress.runtime.subject import Side, Subject
    from edgecompress.types.workload import Phase, Workload


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
    def metric(self) -> MetricModule:
        return cast("MetricModule", self.plug_in.part("metric"))

    @property
    def runtime(self) -> RuntimeModule:
        return cast("RuntimeModule", self.plug_in.part("runtime"))

    @property
    def check(self) -> CheckModule:
        return cast("CheckModule", self.plug_in.part("check"))

    @property
    def profile(self) -> ProfileModule:
        return cast("ProfileModule", self.plug_in.part("profile"))


class StudentModule(Protocol):
    """``student.py``. A checkpoint is a folder with a config.json, which has been read."""

    def matches(self, folder: Path, config: Mapping[str, Any], task: str | None) -> Task | None:
        """The task of the checkpoint if it is of this kind; ``task``: what the user named, of any kind.

        Raises StudentError for what is of this kind and cannot be exported.
        """

    def read(self, folder: Path, config: Mapping[str, Any], task: Task, recipe: StudentRecipe) -> Student:
        """Raises StudentError, in one line, for whatever is wrong with the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """For planning: from the student's size alone."""

    ram_bytes: int
    disk_bytes: int
    seconds: int


class PlanModule(Protocol):
    """``plan.py``."""

    SHORT_PRECISIONS: Mapping[str, str]
    """Names that mean one precision for this kind: {"int4": "int4-weights"}."""

    QUANTIZES_ACTIVATIONS: bool
    """Whether 8 bits for what layers read are worth trying: not where activations have outliers."""

    FORMATS: tuple[str, ...]
    """What it can be written as beside a bundle."""

    def candidates(self, names: Sequence[str], accelerator: str) -> tuple[str, ...]:
        """Those of the precisions, which the target computes in, that such a student is exported as."""

    def check(self, recipe: Recipe, student: Student) -> None:
        """Raises RecipeError for what is asked of such a student and makes no sense."""

    def engine_profile(self, recipe: EngineRecipe, student: Student) -> EngineRecipe:
        """The shapes of an engine with everything filled in that the student decides. Raises RecipeError."""

    def estimate(self, recipe: Recipe, student: Student, candidates: Sequence[str]) -> Estimate: ...

    def stages(self, recipe: Recipe, student: Student, candidates: Sequence[str]) -> Sequence[tuple[str, str]]:
        """(stage, what it does) of what comes before quantization: capture, calibrate."""


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Where samples came from, for the report and the lineage."""

    text: str  # "built-in: …", a file's name
    sha256: str | None  # None: they were made up


@dataclass(frozen=True, kw_only=True)
class GraphFeeds:
    """What one captured graph is run with before it is compiled. Each call goes through the samples anew."""

    calibration: Callable[[], Iterable[Feed]]  # for statistics and Hessians
    probes: Callable[[], Iterable[Feed]]  # a few short ones, for what runs once a weight
    tokens: int  # of the calibration, for the report
    padding: bool = False  # whether statistics must leave padding out


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a bundle has of its kind, beside models."""

    settings: Any  # the kind's record, a frozen dataclass
    reference: bytes  # the reference's answers for held-out samples, as an .npz file
    notes: tuple[str, ...] = ()
    files: Mapping[str, Path | str | bytes] = field(default_factory=dict)


class ExportModule(Protocol):
    """``export.py``."""

    def begin(self, job: Job) -> Any:
        """One export of such a student."""


class MetricModule(Protocol):
    """``metric.py``: numpy alone, so that a device can check itself."""

    def figures(self, fidelity: Fidelity) -> Sequence[tuple[str, float]]:
        """(what it is called, value), the one that is judged first."""

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


__all__ = [
    "Case", "CheckModule", "Estimate", "ExportModule", "GraphFeeds", "Kind", "Manifest", "MetricModule", "Parts",
    "PlanModule", "ProfileModule", "RuntimeModule", "SampleSource", "StudentModule",
]  # fmt: skip
