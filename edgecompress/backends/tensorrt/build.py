"""Exports a typed graph with a build plan, from which TensorRT builds the engine on the device; and that build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgecompress.backends.base import Rebuild
from edgecompress.backends.engines import LIMITS, lowering, profile_of
from edgecompress.backends.float16 import Float16, GpuExport
from edgecompress.backends.tensorrt import engine
from edgecompress.errors import BundleError
from edgecompress.types.artifact import Artifact
from edgecompress.types.bundle import EngineRecord, Manifest, Variant
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job


def begin(job: Job) -> GpuExport:
    float16 = Float16(job)

    def finish(artifact: Artifact, rebuild: Rebuild) -> Artifact:
        recipe = job.recipe.engine
        with job.clock.stage("plan"):
            plan = engine.build_plan(artifact.graph, job.target, recipe, profile_of(artifact.graph, recipe))
        return replace(artifact, build=plan, notes=float16.graph_notes(artifact.name))

    return GpuExport(job, float16, LIMITS, lowering(job, float16), finish)


def build_on_device(
    manifest: Manifest,
    variant: Variant,
    folder: Path,
    scratch: Path,
    device: int | None,
    progress: Callable[[str], None],
) -> tuple[EngineRecord, Mapping[str, Path]]:
    """Build the engine of the bundle's plan on this machine's GPU. Raises HostError, EngineError."""
    from edgecompress.formats.gpus import detect_gpus

    if variant.build is None:
        raise BundleError(f"{folder.name} has no build plan for an engine", hint="Export it again with this version.")
    index, gpu = engine.require_device(variant.build, detect_gpus(), device, variant.path)
    graph = Graph(path=folder / variant.path, stage="lowered", precision=manifest.precision)
    return engine.build_on_device(graph, variant.build, index, gpu, folder, scratch, progress)
