"""Builds a typed graph and its TensorRT-RTX engine, for one compute capability and without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompress.backends.base import Rebuild
from edgecompress.backends.engines import LIMITS, lowering, profile_of
from edgecompress.backends.float16 import ROUNDED, Float16, GpuExport
from edgecompress.backends.tensorrt_rtx.engine import Engine, build_engine
from edgecompress.errors import BundleError, WideProductsError
from edgecompress.types.artifact import Artifact
from edgecompress.types.bundle import EngineRecord, Manifest, Variant
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job


def begin(job: Job) -> GpuExport:
    float16 = Float16(job)

    def finish(artifact: Artifact, rebuild: Rebuild) -> Artifact:
        return _with_engine(job, float16, artifact, rebuild)

    return GpuExport(job, float16, LIMITS, lowering(job, float16), finish)


def _with_engine(job: Job, float16: Float16, artifact: Artifact, rebuild: Rebuild) -> Artifact:
    """Build the engine. If the builder widens a few layers, rebuild with those layers in float16.

    Raises WideProductsError if more than half of the layers would be float16, and the builder's errors.
    """
    widened: tuple[str, ...] = ()
    try:
        engine = _build(job, artifact.graph)
    except WideProductsError as error:
        if 2 * len(error.layers) > error.of:  # the precision's name would describe the smaller part
            raise
        widened = error.layers
        artifact = rebuild(lambda layer: layer not in widened)
        engine = _build(job, artifact.graph)
    read = ", ".join(f"{count} {dtype}" for dtype, count in engine.matrices.items())
    notes = [f"{ROUNDED}: the engine itself was not run", f"layers of the engine that read a constant matrix: {read}"]
    if widened:
        notes.append(f"float16, because the builder would widen their weights: {', '.join(widened)}")
    return replace(
        artifact,
        engine=engine.record,
        files={engine.record.path: engine.engine, engine.record.layers: engine.layers},
        notes=(*notes, *float16.wide_note(artifact.name)),
    )


def _build(job: Job, graph: Graph) -> Engine:
    with job.clock.stage("compile", "engine"):
        return build_engine(graph, job.target, profile_of(graph, job.recipe.engine), graph.path.parent)


@dataclass(frozen=True, kw_only=True)
class _BuiltFor:
    """The properties of a bundle's target that the builder needs."""

    name: str
    compute_capability: tuple[int, int]


def build_on_device(
    manifest: Manifest,
    variant: Variant,
    folder: Path,
    scratch: Path,
    device: int | None,
    progress: Callable[[str], None],
) -> tuple[EngineRecord, Mapping[str, Path]]:
    """Rebuild the bundle's engine with the installed builder. Raises HostError, EngineError."""
    old = variant.engine
    if old is None:
        raise BundleError(f"{folder.name} has no engine to rebuild", hint="Export it again with this version.")
    progress("building the engine")
    graph = Graph(path=folder / variant.path, stage="lowered", precision=manifest.precision)
    target = _BuiltFor(name=manifest.target.name, compute_capability=old.compute_capability)
    made = build_engine(graph, target, old.profile, scratch)
    return made.record, {made.record.path: made.engine, made.record.layers: made.layers}
