"""Builds a bundle's graph for ONNX Runtime's CPU provider, with our own kernels where they are faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgecompress.backends.base import Rebuild
from edgecompress.backends.contents import contents_of, inputs_of, onnx_files
from edgecompress.backends.onnxruntime_cpu.compile import (
    accuracy_levels,
    at_accuracy_level,
    compile_graph,
    has_accuracy_level,
)
from edgecompress.backends.onnxruntime_cpu.contents import own_weight
from edgecompress.backends.onnxruntime_cpu.decoder_layers import use_layers
from edgecompress.backends.onnxruntime_cpu.encoder_kernels import use_encoder_kernels
from edgecompress.backends.onnxruntime_cpu.kernels import WEIGHTS, KerneledGraph, use_kernels, weights_table
from edgecompress.graph.sessions import GraphModel, open_model
from edgecompress.lower import microsoft
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact, ModelContents, ModelFiles
from edgecompress.types.bundle import RuntimeSettings, TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.limits import WeightLimits

_PACKED_TOKENS = 512  # packed tokens can mix lengths; many tokens per call reuse the weights in the CPU's cache
_SHORT_TOKENS = 16  # fusing a layer saves the overhead between operators, which matters when they are short


class CpuExport:
    """One export."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.limits = WeightLimits(integer_bits=7 if job.target.u8s8_saturates else 8)

    def prepare(self, name: str, graph: Graph, feeds: GraphFeeds) -> None:
        """Does nothing: this backend needs no preparation."""

    def build(self, name: str, graph: Graph, folder: Path) -> Artifact:
        """Write ``compiled-<precision>.onnx``, optimized offline."""
        with self.job.clock.stage("lower", graph.precision):
            lowered = microsoft.lower(graph, folder)
        with self.job.clock.stage("compile", graph.precision):
            compiled = compile_graph(lowered, self.job.target, folder)
        runtime = RuntimeSettings(
            threads=self.job.recipe.runtime.threads,
            graph_optimization="disabled",
            session_config={"session.force_spinning_stop": "1"},
        )
        return Artifact(name=name, graph=compiled, runtime=runtime)

    def kernels(self, artifact: Artifact, cases: Mapping[Case, Feed] | None) -> Artifact:
        """Use our packed layers for an encoder before fidelity and speed are measured."""
        if _has_cache(artifact.graph):
            return artifact
        with self.job.clock.stage("compile", f"{artifact.graph.precision} kernels"):
            folder = artifact.graph.path.parent
            found = use_encoder_kernels(
                artifact.graph, self.job.target, self._wanted_kernels(), self.job.threads, folder, cases=cases
            )
        if found.record is None:
            return _with_kernels(artifact, found)
        packed = replace(artifact.runtime, mixed_lengths=True, batch_tokens=_PACKED_TOKENS)
        return replace(_with_kernels(artifact, found), runtime=packed)

    def variants(self, artifact: Artifact) -> Sequence[Artifact]:
        if self.job.recipe.quantize.accuracy_level != "auto" or not has_accuracy_level(artifact.graph):
            return (artifact,)
        return [
            replace(artifact, graph=at_accuracy_level(artifact.graph, level), accuracy_level=level)
            for level in accuracy_levels(self.job.target)
        ]

    def open(self, artifact: Artifact) -> GraphModel:
        return open_model(artifact.graph.path, self.job.threads, artifact.graph.runnable_library)

    def inputs(self, artifact: Artifact) -> tuple[TensorSpec, ...]:
        return inputs_of(artifact)

    def finish(self, artifact: Artifact, cases: Mapping[Case, Feed] | None, rebuild: Rebuild) -> Artifact:
        """Replace ops of a graph with a KV cache by ours, then whole layers, where they are faster."""
        if not _has_cache(artifact.graph):
            return artifact
        target, wanted, threads = self.job.target, self._wanted_kernels(), self.job.threads
        folder = artifact.graph.path.parent
        short = {case: feed for case, feed in (cases or {}).items() if case.sizes["tokens"] <= _SHORT_TOKENS}
        with self.job.clock.stage("compile", "kernels"):
            found = use_kernels(artifact.graph, target, wanted, threads, folder, measured_here=cases is not None)
            found = use_layers(found, target, wanted, threads, folder, cases=short if cases is not None else None)
        return _with_kernels(artifact, found)

    def contents(self, artifact: Artifact) -> ModelContents:
        return contents_of(artifact, own_weight)

    def files(self, artifact: Artifact, *, apart: bool) -> ModelFiles:
        """With our kernels, the files include the library and its table of weights, which are in a separate file."""
        library = artifact.graph.library
        if library is None:
            return onnx_files(artifact, apart=apart)
        made = onnx_files(artifact, apart=True)
        model = made.files[made.path]
        assert isinstance(model, Path)
        return replace(made, files={**made.files, library.name: library, WEIGHTS: weights_table(model)})

    def _wanted_kernels(self) -> str:
        wanted = self.job.recipe.runtime.kernels
        return "none" if wanted == "auto" and not self.job.custom_ops else wanted


def _with_kernels(artifact: Artifact, found: KerneledGraph) -> Artifact:
    return replace(artifact, graph=found.graph, kernels=found.uses, library=found.record)


def _has_cache(graph: Graph) -> bool:
    return any(node.op_type == "GroupQueryAttention" for node in ir.load(graph.path).graph)


def begin(job: Job) -> CpuExport:
    return CpuExport(job)
