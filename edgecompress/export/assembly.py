"""Assembles a bundle from the chosen candidate: manifest, report, files, measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompress.export.bundle import MakeDocuments
from edgecompress.export.candidates import Export, Selection
from edgecompress.export.card import model_card
from edgecompress.export.inventory import host_facts, target_record, versions
from edgecompress.export.plan import Plan
from edgecompress.formats import codec
from edgecompress.formats.manifest import REFERENCE
from edgecompress.formats.recipe import recipe_toml
from edgecompress.graph import timing
from edgecompress.kinds.base import Parts, SampleSource
from edgecompress.lineage.documents import documents
from edgecompress.types.artifact import Artifact, Content, ModelContents, ModelFiles
from edgecompress.types.bundle import Manifest, ModelRecord, Variant
from edgecompress.types.provenance import COMPUTED, UNKNOWN, Lineage, Statement
from edgecompress.types.report import Latency, Measurements, Report
from edgecompress.version import __version__


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """A whole bundle, before its hashes are known."""

    manifest: Manifest
    report: Report
    measurements: Measurements
    files: Mapping[str, Content]
    closing: MakeDocuments  # writes the documents that list those files' hashes


def assemble(plan: Plan, export: Export, selection: Selection, source: SampleSource) -> BundleParts:
    """Time the chosen candidate if this machine matches the target, and collect what the bundle records."""
    job, artifacts = export.job, selection.artifacts
    contents = {name: export.backend.contents(artifact) for name, artifact in artifacts.items()}
    inputs = {name: found.inputs for name, found in contents.items()}
    parts = export.kind.parts(artifacts, inputs, selection.fidelity)
    made = {
        name: export.backend.files(artifact, apart=parts.sharing is not None) for name, artifact in artifacts.items()
    }
    report = _report(export, selection, source, parts, contents)
    lineage = _lineage(plan, source)
    manifest = manifest_of(plan, selection, parts, contents, made)
    files: dict[str, Content] = {
        **{name: content for model in made.values() for name, content in model.files.items()},
        "recipe.toml": recipe_toml(plan.recipe),
        "report.json": codec.dumps(report),
        "lineage.json": codec.dumps(lineage),
        REFERENCE: parts.reference,
        **plan.origin.notices,
        "README.md": model_card(manifest, report, lineage),
        **parts.files,
        **{name: content for artifact in artifacts.values() for name, content in artifact.files.items()},
    }
    if parts.sharing is not None:
        files |= parts.sharing({name: _path(model) for name, model in made.items()})
    measurements = Measurements(
        manifest_sha256="",
        host=host_facts(job.threads),
        latencies=_latencies(export, selection),
        candidates=selection.table,
        kernels=tuple(use for artifact in artifacts.values() for use in artifact.kernels),
    )
    return BundleParts(
        manifest=manifest,
        report=report,
        measurements=measurements,
        files=files,
        closing=documents(manifest, report, lineage, plan.recipe),
    )


def manifest_of(
    plan: Plan,
    selection: Selection,
    parts: Parts,
    contents: Mapping[str, ModelContents],
    files: Mapping[str, ModelFiles],
) -> Manifest:
    """The manifest, without its file records."""
    models = {}
    for name, artifact in selection.artifacts.items():
        path, data = files[name].path, f"{files[name].path}.data"
        variant = Variant(
            backend=plan.backend.name,
            path=path,
            inputs=contents[name].inputs,
            outputs=contents[name].outputs,
            runtime=artifact.runtime,
            providers=plan.backend.plan.PROVIDERS,
            kernels=artifact.library,
            engine=artifact.engine,
            build=artifact.build,
            data=data if data in files[name].files else None,
        )
        models[name] = ModelRecord(variants=(variant,))
    return Manifest(
        tool_version=__version__,
        name=Path(plan.student.source).name or plan.student.source,
        kind=plan.kind.name,
        task=plan.student.task,
        architecture=plan.student.architecture,
        precision=selection.precision,
        target=target_record(plan.target, selection.precision),
        models=models,
        settings=codec.to_jsonable(parts.settings),
        versions={**versions(), **_builders(selection.artifacts)},
    )


def _builders(artifacts: Mapping[str, Artifact]) -> Mapping[str, str]:
    """Builder of an engine -> its version."""
    engines = [artifact.engine for artifact in artifacts.values()]
    return {engine.builder: engine.version for engine in engines if engine is not None}


def _report(
    export: Export,
    selection: Selection,
    source: SampleSource,
    parts: Parts,
    contents: Mapping[str, ModelContents],
) -> Report:
    job = export.job
    ops: dict[str, int] = {}
    for found in contents.values():
        for op, count in found.ops.items():
            ops[op] = ops.get(op, 0) + count
    notes = [] if job.measured_here else [f"not measured: this machine is not a {job.target.name}"]
    notes += parts.notes
    notes += [note for quantization in export.quantizations.values() for note in quantization.notes]
    notes += [note for artifact in selection.artifacts.values() for note in artifact.notes]
    notes += [note for found in contents.values() for note in found.notes]
    return Report(
        fidelity=selection.fidelity,
        kv_cache=parts.kv_cache,
        layers=tuple(layer for found in contents.values() for layer in found.layers),
        ops=dict(sorted(ops.items())),
        held_out_text=source.text,
        notes=tuple(notes),
    )


def _latencies(export: Export, selection: Selection) -> tuple[Latency, ...]:
    if not export.job.measured_here:
        return ()
    rows = []
    with export.job.clock.stage("measure", selection.precision):
        for name, artifact in selection.artifacts.items():
            model = export.backend.open(artifact)
            for case, feed in (export.cases(artifact) or {}).items():
                named = case if len(selection.artifacts) == 1 else replace(case, name=f"{name} {case.name}")
                rows.append(timing.percentiles(model.run, named, feed, threads=export.job.threads))
    return tuple(rows)


def _lineage(plan: Plan, source: SampleSource) -> Lineage:
    return replace(
        plan.origin.lineage,
        calibration=Statement(value=source.text, said_by=COMPUTED),
        calibration_sha256=Statement(value=source.sha256, said_by=COMPUTED) if source.sha256 else UNKNOWN,
    )


def _path(model: ModelFiles) -> Path:
    content = model.files[model.path]
    assert isinstance(content, Path)
    return content
