"""Writes the weights of the graph's only product, rounded to the precision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecompress.backends.base import Rebuild
from edgecompress.graph.linears import find_linears
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact, ModelContents, ModelFiles
from edgecompress.types.bundle import RuntimeSettings, TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.limits import WeightLimits
from edgecompress.types.precision import FP16
from tests.toy_backend.table import INPUTS, OUTPUTS, Table


class TableExport:
    limits = WeightLimits()

    def __init__(self, job: Job) -> None:
        self.job = job

    def prepare(self, name: str, graph: Graph, feeds: GraphFeeds) -> None: ...

    def build(self, name: str, graph: Graph, folder: Path) -> Artifact:
        (linear,) = find_linears(ir.load(graph.path))
        weights = linear.weight_array().astype(np.float16 if graph.precision == FP16 else np.float32)
        path = folder / f"table-{graph.precision}.json"
        with self.job.clock.stage("compile", graph.precision):
            path.write_text(json.dumps(weights.astype(np.float64).tolist()), encoding="utf-8")
        runtime = RuntimeSettings(threads=1, graph_optimization="none")
        return Artifact(name=name, graph=replace(graph, path=path, stage="compiled"), runtime=runtime)

    def kernels(self, artifact: Artifact, cases: Mapping[Case, Feed] | None) -> Artifact:
        return artifact

    def variants(self, artifact: Artifact) -> Sequence[Artifact]:
        return (artifact,)

    def open(self, artifact: Artifact) -> Table:
        return Table(artifact.graph.path)

    def inputs(self, artifact: Artifact) -> tuple[TensorSpec, ...]:
        return INPUTS

    def finish(self, artifact: Artifact, cases: Mapping[Case, Feed] | None, rebuild: Rebuild) -> Artifact:
        return replace(artifact, notes=("a table, not a graph",))

    def contents(self, artifact: Artifact) -> ModelContents:
        return ModelContents(inputs=INPUTS, outputs=OUTPUTS, ops={"Table": 1})

    def files(self, artifact: Artifact, *, apart: bool) -> ModelFiles:
        return ModelFiles(path="table.json", files={"table.json": artifact.graph.path})


def begin(job: Job) -> TableExport:
    return TableExport(job)
