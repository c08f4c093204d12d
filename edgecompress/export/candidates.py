"""Builds the candidates of an export, verifies and times them, and selects one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgecompress.backends.base import BackendExport
from edgecompress.errors import EdgeCompressError
from edgecompress.export.choice import choose, require
from edgecompress.export.quantization import Quantization, every_layer
from edgecompress.graph import timing
from edgecompress.graph.linears import find_linears
from edgecompress.kinds.base import KindExport, MetricModule
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact
from edgecompress.types.case import Case
from edgecompress.types.job import Job
from edgecompress.types.report import Candidate, Fidelity

Artifacts = Mapping[str, Artifact]
"""Name of the student's graph -> artifact."""

_COSTLY_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Selection:
    precision: str
    artifacts: Artifacts
    fidelity: Fidelity
    table: tuple[Candidate, ...]  # empty if there was only one candidate


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export: job, kind, backend and graphs."""

    job: Job
    kind: KindExport
    metric: MetricModule
    backend: BackendExport
    quantizations: Mapping[str, Quantization]

    def build(self, precision: str) -> Artifacts:
        """Build one candidate."""
        artifacts = {name: self.rebuild(name, precision) for name in self.quantizations}
        artifacts = {name: self.backend.kernels(each, self.cases(each)) for name, each in artifacts.items()}
        return self.kind.candidate(artifacts, self.backend.open)

    def rebuild(
        self, name: str, precision: str, only: Callable[[str], bool] = every_layer, folder: str = ""
    ) -> Artifact:
        """Build one graph of a candidate. ``folder``: a subfolder for a rebuild, which keeps the first build."""
        quantization = self.quantizations[name]
        out_dir = quantization.folder / folder
        out_dir.mkdir(exist_ok=True)
        with self.job.clock.stage("quantize", precision):
            quantized = quantization.quantize(precision, out_dir, only)
        return self.backend.build(name, quantized, out_dir)

    def cases(self, artifact: Artifact) -> Mapping[Case, Feed] | None:
        """The feeds to time a model on; None if this machine does not match the target."""
        if not self.job.measured_here:
            return None
        return self.kind.cases(artifact.name, self.backend.inputs(artifact))

    def fidelity(self, artifacts: Artifacts, samples: int | None = None) -> Fidelity:
        return self.kind.fidelity({name: self.backend.open(each) for name, each in artifacts.items()}, samples)


def select(export: Export) -> Selection:
    """Build every candidate (with ``--accuracy-level auto``, at every level of the target) and choose one.

    Speed is the geometric mean over the cases. Raises QualityBudgetError if there are several candidates and none is
    within the budget; a single candidate is not checked here (see :func:`require_budget`).
    """
    job, built, table = export.job, list[Artifacts | None](), list[Candidate]()
    for precision in job.candidates:
        try:
            artifacts = export.build(precision)
        except EdgeCompressError as error:
            if len(job.candidates) == 1:
                raise
            built.append(None)
            table.append(_row(precision, verdict=f"refused: {error.message}"))
            continue
        for level, variant in _variants(export.backend, artifacts).items():
            with job.clock.stage("verify", precision):
                fidelity = export.fidelity(variant)
            size = sum(each.graph.bytes_on_disk for each in variant.values())
            built.append(variant)
            table.append(_row(precision, fidelity=fidelity, model_bytes=size, accuracy_level=level))
    index, rows = 0, tuple[Candidate, ...]()
    if len(table) > 1:
        if job.measured_here and sum(artifacts is not None for artifacts in built) > 1:
            with job.clock.stage("measure", "candidates in turn"):
                table = _timed(export, built, table)
        choice = choose(table, job.recipe.quality, export.metric)
        index, rows = choice.index, choice.table
    chosen, fidelity_of = built[index], table[index].fidelity
    assert chosen is not None
    assert fidelity_of is not None
    return Selection(precision=table[index].precision, artifacts=chosen, fidelity=fidelity_of, table=rows)


def require_budget(export: Export, selection: Selection) -> None:
    """Raises QualityBudgetError, naming the most costly layers, if the selection misses the budget."""
    quality, metric = export.job.recipe.quality, export.metric
    costly: list[str] = []
    if metric.shortfall(selection.fidelity, quality) and export.kind.costly_samples:
        with export.job.clock.stage("verify", "costly layers"):
            costly = _costly_layers(export, selection)
    require(selection.fidelity, quality, metric, precision=selection.precision, costly=costly)


def _costly_layers(export: Export, selection: Selection) -> list[str]:
    """Quantize one layer at a time; return the names of those that cost most quality, most costly first."""
    qualities: dict[str, float] = {}
    for name, quantization in export.quantizations.items():
        for linear in find_linears(ir.load(quantization.source(selection.precision).path)):
            layer = linear.name
            one = export.rebuild(name, selection.precision, layer.__eq__, "one-layer")
            fidelity = export.fidelity({**selection.artifacts, name: one}, export.kind.costly_samples)
            qualities[layer] = export.metric.quality(fidelity)
    return sorted(qualities, key=lambda layer: qualities[layer])[:_COSTLY_NAMED]


def finish(export: Export, selection: Selection) -> Selection:
    """Run the backend's final steps on the chosen candidate, and verify again if they changed a graph.

    Raises QualityBudgetError if the result misses the budget.
    """

    def finished(artifact: Artifact) -> Artifact:
        def rebuild(only: Callable[[str], bool]) -> Artifact:
            return export.rebuild(artifact.name, selection.precision, only, "rebuilt")

        return export.backend.finish(artifact, export.cases(artifact), rebuild)

    artifacts = {name: finished(each) for name, each in selection.artifacts.items()}
    selected = replace(selection, artifacts=artifacts)
    if all(artifacts[name].graph == before.graph for name, before in selection.artifacts.items()):
        return selected
    with export.job.clock.stage("verify", "final model"):
        selected = replace(selected, fidelity=export.fidelity(artifacts))
    require(selected.fidelity, export.job.recipe.quality, export.metric, precision=selected.precision)
    return selected


def _variants(backend: BackendExport, artifacts: Artifacts) -> Mapping[int | None, Artifacts]:
    """Accuracy level -> artifacts; a graph without levels is the same at each. Key None: no level to choose."""
    of_graph = {
        name: {each.accuracy_level: each for each in backend.variants(artifact)} for name, artifact in artifacts.items()
    }
    tried = dict.fromkeys(level for variants in of_graph.values() for level in variants)
    levels = [level for level in tried if level is not None]
    return {
        level: {name: variants.get(level, artifacts[name]) for name, variants in of_graph.items()}
        for level in (levels or tried)
    }


def _timed(export: Export, built: Sequence[Artifacts | None], table: Sequence[Candidate]) -> list[Candidate]:
    """The table with the times of the candidates that were built, for every model and case."""
    there = {str(index): artifacts for index, artifacts in enumerate(built) if artifacts is not None}
    names = list(export.quantizations)
    milliseconds: dict[str, dict[str, float]] = {side: {} for side in there}
    logarithms: dict[str, list[float]] = {side: [] for side in there}
    for name in names:
        models = {side: export.backend.open(artifacts[name]) for side, artifacts in there.items()}
        cases = export.cases(next(iter(there.values()))[name]) or {}
        timings = timing.compare({side: model.run for side, model in models.items()}, list(cases.values()))
        labels = [case.name if len(names) == 1 else f"{name} {case.name}" for case in cases]
        for side, found in timings.items():
            milliseconds[side] |= dict(zip(labels, found.by_feed_ms, strict=True))
            logarithms[side] += [float(np.log(found.speedup))] * len(cases)
    rows = list(table)
    for side, shapes in milliseconds.items():
        rows[int(side)] = replace(
            rows[int(side)],
            speedup=round(float(np.exp(np.mean(logarithms[side]))), 3),
            latency_ms=round(list(shapes.values())[-1], 3),
            shapes_ms={label: round(ms, 3) for label, ms in shapes.items()},
        )
    return rows


def _row(
    precision: str,
    *,
    fidelity: Fidelity | None = None,
    model_bytes: int = 0,
    verdict: str = "",
    accuracy_level: int | None = None,
) -> Candidate:
    return Candidate(
        precision=precision,
        fidelity=fidelity,
        speedup=None,
        latency_ms=None,
        model_bytes=model_bytes,
        verdict=verdict,
        accuracy_level=accuracy_level,
    )
