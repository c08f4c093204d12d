"""What an export for a GPU adds: types that float16 can hold and, for an engine, the building of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx_ir as ir

from edgecompress.backends.tensorrt.engine import build_plan
from edgecompress.backends.tensorrt_rtx.engine import Engine, build_engine, profile_of
from edgecompress.errors import WideProductsError
from edgecompress.export.candidates import Taken
from edgecompress.graph.linears import Linear
from edgecompress.lower import microsoft_half, standard
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.peaks import too_large_for_half
from edgecompress.runtime.metrics import require
from edgecompress.types.bundle import BuildPlan
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import ONNXRUNTIME
from edgecompress.types.report import Fidelity

if TYPE_CHECKING:
    from edgecompress.export.pipeline import Clock, Plan


_ROUNDED = "fidelity is that of model.onnx on ONNX Runtime's CPU provider, rounded to float16 wherever it is float16"


class GpuStage:
    """What an encoder's and a decoder's export for a GPU have in common."""

    def __init__(self, plan: Plan, folder: Path, clock: Clock) -> None:
        self.plan, self.folder, self.clock = plan, folder, clock
        self.wide: tuple[str, ...] = ()  # values that float16 could not hold
        self.kept: tuple[str, ...] = ()  # layers that the engine would have widened

    def look_for_wide_values(self, float_graph: Path, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
        """Of the portable float graph that the engine's is made from."""
        with self.clock.stage("calibrate", "range of float16"):
            model = ir.load(float_graph)
            self.wide = too_large_for_half(lower_model(model.clone()), standard.computed_in_half(model), batches)

    def lower(self, quantized: Graph, folder: Path) -> Graph:
        if self.plan.backend == ONNXRUNTIME:
            return microsoft_half.lower(quantized, folder, self.wide)
        capacity = self.plan.recipe.engine.context_tokens or 0
        return standard.lower(quantized, folder, self.wide, capacity_tokens=capacity)

    def rounded(self, lowered: Graph) -> Graph:
        """What the GPU computes, for ONNX Runtime's CPU provider."""
        return rounded_graph(lowered, lowered.path.parent)

    def build(
        self,
        taken: Taken,
        without: Callable[[Callable[[Linear], bool]], Graph],
        fidelity: Callable[[Graph], Fidelity],
    ) -> tuple[Taken, Engine]:
        """The engine of the graph; where its builder widens a few layers, of a graph that has those in float16.

        ``without`` makes the graph again with those layers quantized only that it is given a test for. Raises
        WideProductsError if more than half of the layers would be float16, and what its builder raises.
        """
        precision = taken.graph.precision
        try:
            return taken, self._build(taken.graph)
        except WideProductsError as error:
            if 2 * len(error.layers) > error.of:  # it would be named for what the least of it is
                raise
            self.kept = error.layers
        graph = without(lambda linear: linear.name not in self.kept)
        with self.clock.stage("verify", precision):
            found = fidelity(graph)
        require(found, self.plan.recipe.quality, precision=precision)
        return replace(taken, graph=graph, fidelity=found), self._build(graph)

    def _build(self, graph: Graph) -> Engine:
        with self.clock.stage("compile", "engine"):
            return build_engine(graph, self.plan.target, profile_of(graph, self.plan.recipe.engine), self.folder)

    def build_plan(self, graph: Graph) -> BuildPlan:
        """How TensorRT is to build it, on the device."""
        with self.clock.stage("plan"):
            engine = self.plan.recipe.engine
            return build_plan(graph, self.plan.target, engine, profile_of(graph, engine))

    def notes(self, engine: Engine) -> tuple[str, ...]:
        """What the report says of it."""
        read = ", ".join(f"{count} {dtype}" for dtype, count in engine.matrices.items())
        notes = [
            f"{_ROUNDED}: the engine itself was not run",
            f"layers of the engine that read a constant matrix: {read}",
        ]
        if self.kept:
            notes.append(f"float16, since the engine would have widened their weights: {', '.join(self.kept)}")
        return (*notes, *self._wide_note())

    def graph_notes(self) -> tuple[str, ...]:
        """What the report says of a graph for the CUDA provider, or for a build on the device."""
        return (f"{_ROUNDED}: not yet run on a GPU", *self._wide_note())

    def _wide_note(self) -> tuple[str, ...]:
        return (f"float32, since float16 could not hold them: {', '.join(self.wide)}",) if self.wide else ()
