"""What a bundle is made of once its graph is chosen: manifest, report, files, measurements; encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgecompress.backends.onnxruntime_cpu.compile import CUDA_PROVIDERS, runtime_settings
from edgecompress.backends.onnxruntime_cpu.kernels import WEIGHTS, weights_table
from edgecompress.backends.tensorrt_rtx.engine import Engine
from edgecompress.export.bundle import Closing
from edgecompress.export.candidates import Taken
from edgecompress.export.card import model_card
from edgecompress.export.inventory import (
    host_facts,
    op_counts,
    target_record,
    tensor_spec,
    versions,
    weight_layers,
    weight_notes,
)
from edgecompress.formats import codec
from edgecompress.formats.recipe import recipe_toml
from edgecompress.graph import timing as latency
from edgecompress.graph.sessions import PROVIDERS, open_session
from edgecompress.kinds.encoder.check import REFERENCE
from edgecompress.lineage.documents import documents
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import BuildPlan, GenerationSettings, ImageSettings, Manifest, TextSettings
from edgecompress.types.graph import Graph
from edgecompress.types.provenance import COMPUTED, UNKNOWN, Lineage, Statement
from edgecompress.types.recipe import ONNXRUNTIME
from edgecompress.types.report import Latency, Measurements, QuantizedCache, Report
from edgecompress.version import __version__

if TYPE_CHECKING:
    from edgecompress.export.pipeline import Clock, Plan

# Packed tokens need no like lengths, and many of them share the weights' way through the cache.
PACKED: dict[str, Any] = {"mixed_lengths": True, "batch_tokens": 512}
REFERENCE_BYTES = 300_000  # of reference outputs that travel with the bundle, for `edgecompress verify`


@dataclass(frozen=True, kw_only=True)
class Made:
    manifest: Manifest
    report: Report
    measurements: Measurements
    files: Mapping[str, Path | str | bytes]
    closing: Closing  # what is written once those files' hashes are known


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an encoder and a decoder bring along differently."""

    text_source: str  # where the held-out inputs came from
    text_sha256: str | None  # of them, and of the calibration texts; None: they were made up
    reference: bytes  # the reference's outputs for them, as an .npz file
    shapes: Mapping[tuple[int, int], Feed]  # (batch, tokens) -> feed, to be timed
    text: TextSettings | None = None
    image: ImageSettings | None = None
    generation: GenerationSettings | None = None
    labels: tuple[str, ...] = ()
    kv_cache: QuantizedCache | None = None
    engine: Engine | None = None  # what runs in place of the graph
    build: BuildPlan | None = None  # how the engine is built on the device
    notes: tuple[str, ...] = ()
    files: Mapping[str, Path | str | bytes] = field(default_factory=dict)  # beside those that every bundle has
    # What is made from the model's file as the bundle has it, whose weights then always lie apart.
    more_files: Callable[[Path | str | bytes, Manifest], Mapping[str, Path | str]] | None = None


def assemble(plan: Plan, clock: Clock, threads: int, taken: Taken, parts: Parts) -> Made:
    """Time the chosen graph if this machine may, and write down all that is known of it."""
    model = ir.load(taken.graph.path)
    latencies: tuple[Latency, ...] = ()
    notes = parts.notes
    if plan.measured_here:
        with clock.stage("measure", taken.graph.precision):
            run = open_session(taken.graph.path, threads, taken.graph.runnable_library)
            latencies = tuple(
                latency.percentiles(run, feed, batch=batch, length_tokens=tokens, threads=threads)
                for (batch, tokens), feed in parts.shapes.items()
            )
    else:
        notes = (f"not measured: this machine is not a {plan.target.name}", *notes)
    report = Report(
        fidelity=taken.fidelity,
        kv_cache=parts.kv_cache,
        layers=weight_layers(model),
        ops=op_counts(model),
        held_out_text=parts.text_source,
        notes=(*notes, *weight_notes(model)),
    )
    lineage = _lineage(plan, parts)
    record = parts.engine.record if parts.engine is not None else None
    manifest = Manifest(
        tool_version=__version__,
        name=Path(plan.student.source).name or plan.student.source,
        task=plan.student.task,
        architecture=plan.student.architecture,
        precision=taken.graph.precision,
        model="model.onnx",
        inputs=tuple(tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(tensor_spec(value) for value in model.graph.outputs),
        target=target_record(plan.target, taken.graph.precision, _providers(plan), plan.backend),
        runtime=replace(
            runtime_settings(plan.target, plan.recipe.runtime.threads),
            **(PACKED if taken.library is not None and not plan.student.is_decoder else {}),
        ),
        text=parts.text,
        image=parts.image,
        generation=parts.generation,
        labels=parts.labels,
        kernels=taken.library,
        engine=record,
        build=parts.build,
        versions={**versions(), **({record.builder: record.version} if record is not None else {})},
    )
    files: dict[str, Path | str | bytes] = {
        **model_files(taken.graph, apart=parts.more_files is not None),
        "recipe.toml": recipe_toml(plan.recipe),
        "report.json": codec.dumps(report),
        "lineage.json": codec.dumps(lineage),
        REFERENCE: parts.reference,
        **plan.origin.notices,
        "README.md": model_card(manifest, report, lineage),
        **parts.files,
    }
    if parts.engine is not None:
        files |= {parts.engine.record.path: parts.engine.engine, parts.engine.record.layers: parts.engine.layers}
    if parts.more_files is not None:
        files |= parts.more_files(files["model.onnx"], manifest)
    measurements = Measurements(
        manifest_sha256="",
        host=host_facts(threads),
        latencies=latencies,
        candidates=taken.table,
        kernels=taken.kernels,
    )
    return Made(
        manifest=manifest,
        report=report,
        measurements=measurements,
        files=files,
        closing=documents(manifest, report, lineage, plan.recipe),
    )


def _lineage(plan: Plan, parts: Parts) -> Lineage:
    sha256 = parts.text_sha256
    return replace(
        plan.origin.lineage,
        calibration=Statement(value=parts.text_source, said_by=COMPUTED),
        calibration_sha256=Statement(value=sha256, said_by=COMPUTED) if sha256 else UNKNOWN,
    )


def _providers(plan: Plan) -> tuple[str, ...]:
    """Of ONNX Runtime: none where it runs nothing."""
    if plan.backend != ONNXRUNTIME:
        return ()
    return CUDA_PROVIDERS if plan.for_gpu else PROVIDERS


def model_files(graph: Graph, *, apart: bool = False) -> dict[str, Path | str | bytes]:
    """The compiled model under the names it has in a bundle; weights that are large lie in a file of their own.

    ``apart``: small ones too, so that another graph can share them; also where our kernels read them.
    """
    if not (graph.data.exists() or apart or graph.library is not None):
        return {"model.onnx": graph.path}
    renamed = graph.path.with_name("model.onnx")
    ir.save(ir.load(graph.path), renamed, external_data="model.onnx.data")
    files: dict[str, Path | str | bytes] = {
        "model.onnx": renamed,
        "model.onnx.data": renamed.with_name("model.onnx.data"),
    }
    if graph.library is not None:
        files |= {graph.library.name: graph.library, WEIGHTS: weights_table(renamed)}
    return files
