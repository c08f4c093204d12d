"""One export of an adder."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgecompress.graph.model import write_model
from edgecompress.kinds.base import Open, Parts, SampleSource
from edgecompress.runtime.model import Model
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact
from edgecompress.types.bundle import MODEL, TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.report import Fidelity


@dataclass(frozen=True, kw_only=True)
class AdderSettings:
    numbers: int


class AdderExport:
    costly_samples = 4

    def __init__(self, job: Job) -> None:
        self.job = job
        config = json.loads((job.student.path / "config.json").read_text(encoding="utf-8"))
        self.weights = np.array(config["weights"], dtype=np.float32).reshape(2, 1)
        random = np.random.default_rng(0)
        self.calibration, self.held_out = (random.uniform(-4, 4, (16, 2)).astype(np.float32) for _ in range(2))
        self.expected = np.zeros((0, 1))

    def samples(self) -> SampleSource:
        return SampleSource(text="synthetic pairs of numbers")

    def capture(self, opset: int) -> Mapping[str, Graph]:
        def value(name: str, size: int) -> ir.Value:
            return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", size]))

        numbers = value("numbers", 2)
        tensor = ir.tensor(self.weights, name="weights")
        weights = ir.Value(name="weights", type=ir.TensorType(tensor.dtype), shape=ir.Shape([2, 1]), const_value=tensor)
        node = ir.node("MatMul", [numbers, weights], name="adder/MatMul")
        result = node.outputs[0]
        result.name, result.type, result.shape = "sum", numbers.type, ir.Shape(["batch", 1])
        graph = ir.Graph([numbers], [result], nodes=[node], initializers=[weights], opset_imports={"": opset}, name="a")
        path = self.job.folder / "captured.onnx"
        write_model(ir.Model(graph, ir_version=10), path)
        return {MODEL: Graph(path=path, stage="captured")}

    def reference(self, captured: Mapping[str, Graph]) -> None:
        self.expected = self.held_out.astype(np.float64) @ self.weights

    def feeds(self, name: str) -> GraphFeeds:
        return GraphFeeds(calibration=lambda: [{"numbers": self.calibration}], smooths=False)

    def cases(self, name: str, inputs: Sequence[TensorSpec]) -> Mapping[Case, Feed]:
        return {
            Case(name=f"{pairs} pairs", sizes={"pairs": pairs}): {"numbers": self.held_out[:pairs]} for pairs in (1, 8)
        }

    def candidate(self, artifacts: Mapping[str, Artifact], open_model: Open) -> Mapping[str, Artifact]:
        return artifacts

    def fidelity(self, models: Mapping[str, Model], samples: int | None = None) -> Fidelity:
        (found,) = models[MODEL].run({"numbers": self.held_out[:samples]})
        error = float(np.abs(found - self.expected[:samples]).max())
        return Fidelity(samples=len(found), measures={"largest_error": round(error, 9)})

    def parts(
        self, artifacts: Mapping[str, Artifact], inputs: Mapping[str, Sequence[TensorSpec]], fidelity: Fidelity
    ) -> Parts:
        buffer = io.BytesIO()
        arrays = {f"{i}/in/numbers": self.held_out[i : i + 1] for i in range(4)}
        arrays |= {f"{i}/out/0": self.expected[i : i + 1].astype(np.float32) for i in range(4)}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return Parts(settings=AdderSettings(numbers=2), reference=buffer.getvalue())


def begin(job: Job) -> AdderExport:
    return AdderExport(job)
