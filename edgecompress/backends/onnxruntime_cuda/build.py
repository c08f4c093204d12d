"""Builds a bundle's graph for ONNX Runtime's CUDA provider: fused ops, with explicit types."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgecompress.backends.base import Rebuild
from edgecompress.backends.float16 import Float16, GpuExport
from edgecompress.lower import microsoft_half
from edgecompress.types.artifact import Artifact
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.limits import WeightLimits


def begin(job: Job) -> GpuExport:
    float16 = Float16(job)

    def lower(name: str, graph: Graph, folder: Path) -> Graph:
        return microsoft_half.lower(graph, folder, float16.wide(name))

    def finish(artifact: Artifact, rebuild: Rebuild) -> Artifact:
        return replace(artifact, notes=float16.graph_notes(artifact.name))

    return GpuExport(job, float16, WeightLimits(), lower, finish)
