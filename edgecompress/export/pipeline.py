"""Runs the stages of an export in order, for every kind of student and every backend."""

from __future__ import annotations

import gc
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import OutputError
from edgecompress.export.bundle import check_output, write_bundle
from edgecompress.export.interrupts import Interrupts
from edgecompress.export.plan import Plan, plan
from edgecompress.runtime.memory import check_available
from edgecompress.types.bundle import Manifest
from edgecompress.types.job import Job
from edgecompress.types.precision import PRECISIONS
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import Measurements, Report

if TYPE_CHECKING:
    from edgecompress.export.assembly import BundleParts

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    output: Path
    manifest: Manifest
    report: Report
    measurements: Measurements
    seconds: Mapping[str, float]  # stage -> wall time
    peak_rss_bytes: int


def export(
    recipe: Recipe, output: Path, *, force: bool = False, progress: Progress | None = None, resolved: Plan | None = None
) -> ExportResult:
    """Export a recipe as a bundle. Nothing is left behind if a stage fails or the run is interrupted.

    Raises the classes of :mod:`edgecompress.errors`; QualityBudgetError if the budget is missed.
    """
    check_output(output, force)
    planned = resolved or plan(recipe)
    check_available(
        planned.estimate.ram_bytes,
        f"exporting {planned.student.parameters / 1e9:.2f} B parameters as {', '.join(planned.candidates)}",
        "Close other programs, or give one --precision.",
    )
    with workspace(output.absolute().parent) as folder, Interrupts() as interrupts:
        clock = Clock(progress or (lambda _: None), interrupts)
        parts = _run_stages(planned, folder, clock)
        with clock.stage("bundle"):
            manifest = write_bundle(
                output,
                manifest_without_files=parts.manifest,
                files=parts.files,
                measurements=parts.measurements,
                force=force,
                closing=parts.closing,
            )
    return ExportResult(
        output=output,
        manifest=manifest,
        report=parts.report,
        measurements=parts.measurements,
        seconds=clock.seconds,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _run_stages(planned: Plan, folder: Path, clock: Clock) -> BundleParts:
    # Heavy packages are imported only now, so that a bad flag or path fails at once.
    from edgecompress.export.assembly import assemble
    from edgecompress.export.candidates import Export, finish, require_budget, select
    from edgecompress.export.quantization import Quantization

    job = Job(
        recipe=planned.recipe,
        student=planned.student,
        target=planned.target,
        candidates=planned.candidates,
        custom_ops=planned.format is None or planned.format.custom_ops,
        measured_here=planned.measured_here,
        threads=planned.threads,
        folder=folder,
        clock=clock,
    )
    kind, backend = planned.kind.export.begin(job), planned.backend.build.begin(job)
    source = kind.samples()
    with clock.stage("capture"):
        captured = kind.capture(planned.backend.plan.opset(job.target))
    with clock.stage("verify", "reference"):
        kind.reference(captured)
    with _frozen_objects():
        quantizations = {
            name: Quantization(job, name, graph, kind.feeds(name), backend.limits) for name, graph in captured.items()
        }
        if any(PRECISIONS[name].calibrated for name in job.candidates):
            with clock.stage("calibrate"):
                for quantization in quantizations.values():
                    quantization.calibrate()
        for name, quantization in quantizations.items():
            backend.prepare(name, quantization.source(), quantization.feeds)
        export = Export(job=job, kind=kind, metric=planned.kind.metric, backend=backend, quantizations=quantizations)
        selection = select(export)
        require_budget(export, selection)
        return assemble(planned, export, finish(export, selection), source)


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Keep the garbage collector off all objects alive now: torch and transformers alone have a million."""
    if gc.get_freeze_count() > 0:  # the application froze them; do not undo that
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Clock:
    """Tells the caller which stage is running, and records how long each took."""

    def __init__(self, progress: Progress, interrupts: Interrupts) -> None:
        self.progress, self.interrupts = progress, interrupts
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        self.interrupts.raise_lost()
        self.progress(f"{name} {detail}".strip())
        started = time.perf_counter()
        try:
            yield
        finally:
            # Values and nodes of a graph form cycles: without this, every candidate's weights stay in memory.
            gc.collect()
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A scratch folder on the output's disk, removed at the end of the block, even after an error."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".edgecompress-", dir=parent))
    except OSError as error:
        raise OutputError(
            f"cannot write in {parent}: {error.strerror}", hint="Give an --output in a writable folder."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
