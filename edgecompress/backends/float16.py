"""Code shared by GPU backends: finding values too large for float16, and emulating its rounding on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from edgecompress.backends.base import Rebuild
from edgecompress.backends.contents import contents_of, inputs_of, onnx_files
from edgecompress.graph.sessions import GraphModel, open_model
from edgecompress.lower import microsoft, standard
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.quantize.peaks import too_large_for_half
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact, ModelContents, ModelFiles
from edgecompress.types.bundle import RuntimeSettings, TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.limits import WeightLimits

ROUNDED = "fidelity is that of model.onnx on ONNX Runtime's CPU provider, rounded to float16 wherever it is float16"

_BATCH_TOKENS = 16384  # per call: activations fit a small GPU's memory, and keep a large GPU busy


class Float16:
    """The values of one export that float16 cannot represent, by graph."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._wide: dict[str, tuple[str, ...]] = {}

    def prepare(self, name: str, graph: Graph, feeds: GraphFeeds) -> None:
        """Find values too large for float16 in the portable float graph."""
        with self.job.clock.stage("calibrate", "range of float16"):
            model = ir.load(graph.path)
            names = standard.computed_in_half(model)
            self._wide[name] = too_large_for_half(microsoft.lower_model(model.clone()), names, feeds.calibration())

    def wide(self, name: str) -> tuple[str, ...]:
        return self._wide[name]

    def wide_note(self, name: str) -> tuple[str, ...]:
        """A note for the report."""
        wide = self.wide(name)
        return (f"float32, because float16 cannot represent their values: {', '.join(wide)}",) if wide else ()

    def graph_notes(self, name: str) -> tuple[str, ...]:
        """Notes for the report on a graph that has not run on a GPU."""
        return (f"{ROUNDED}: not yet run on a GPU", *self.wide_note(name))

    def open(self, artifact: Artifact) -> GraphModel:
        """Open what the GPU computes, for ONNX Runtime's CPU provider."""
        rounded = rounded_graph(artifact.graph, artifact.graph.path.parent)
        return open_model(rounded.path, self.job.threads)


class GpuExport:
    """One export of a typed graph. The parts that differ between GPU backends are arguments."""

    def __init__(
        self,
        job: Job,
        float16: Float16,
        limits: WeightLimits,
        lower: Callable[[str, Graph, Path], Graph],
        finish: Callable[[Artifact, Rebuild], Artifact],
    ) -> None:
        """``lower``: (graph's name, quantized graph, output folder) -> typed graph."""
        self.job, self.limits = job, limits
        self._float16, self._lower, self._finish = float16, lower, finish

    def prepare(self, name: str, graph: Graph, feeds: GraphFeeds) -> None:
        self._float16.prepare(name, graph, feeds)

    def build(self, name: str, graph: Graph, folder: Path) -> Artifact:
        with self.job.clock.stage("lower", graph.precision):
            lowered = self._lower(name, graph, folder)
        # Batches mix lengths: on a GPU, padding costs less than another call. The graph is optimized at run time, by
        # its runtime.
        runtime = RuntimeSettings(
            threads=self.job.recipe.runtime.threads,
            graph_optimization="all",
            batch_tokens=_BATCH_TOKENS,
            mixed_lengths=True,
        )
        return Artifact(name=name, graph=lowered, runtime=runtime)

    def kernels(self, artifact: Artifact, cases: Mapping[Case, Feed] | None) -> Artifact:
        return artifact

    def variants(self, artifact: Artifact) -> Sequence[Artifact]:
        return (artifact,)

    def open(self, artifact: Artifact) -> GraphModel:
        return self._float16.open(artifact)

    def inputs(self, artifact: Artifact) -> tuple[TensorSpec, ...]:
        return inputs_of(artifact)

    def finish(self, artifact: Artifact, cases: Mapping[Case, Feed] | None, rebuild: Rebuild) -> Artifact:
        return self._finish(artifact, rebuild)

    def contents(self, artifact: Artifact) -> ModelContents:
        return contents_of(artifact)

    def files(self, artifact: Artifact, *, apart: bool) -> ModelFiles:
        return onnx_files(artifact, apart=apart)
