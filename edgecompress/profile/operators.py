"""Where a call's time goes, node by node, and each node's time at the machine's roof.

The backend times every node, if it can, in separate sessions. Node names begin with the student's module names, so a
time belongs to layer 3's attention and not to MatMul_117. The graph says what a node computes and moves.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.backends import find_backend
from edgecompress.errors import HostError, UsageError
from edgecompress.kinds import find_kind
from edgecompress.profile.costs import Cost, cost
from edgecompress.profile.layers import layer_of
from edgecompress.profile.peaks import measure_peaks, read_rate
from edgecompress.profile.shapes import value_shapes
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.model import NodeTimer
from edgecompress.types.bundle import TensorSpec
from edgecompress.types.profile import Operator, OperatorProfile, Peaks
from edgecompress.types.workload import GraphRun, Phase, Workload

CALLS, _WARM_UP = 20, 3
_LONGEST_S = 4.0
_WHOLE_LAYERS = ("EncoderLayer", "DecoderLayer", "DecoderLayerInt8")

Durations = Mapping[str, float]  # node -> microseconds


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One node of the graph, and its cost over all of a call's ``runs`` of the graph."""

    name: str
    module: str
    op: str
    cost: Cost
    runs: int = 1


def module_of(node: ir.Node, values: Collection[str]) -> str:
    """The student's module that a node belongs to; "" for none, such as pooling.

    ``values``: names of the graph's values. A node named after a value prepares it for its readers.
    """
    name = node.name or ""
    module = name.removeprefix("packed/").rpartition("/")[0].split("/", 1)[0]
    if node.op_type in _WHOLE_LAYERS:
        return layer_of(module)
    if module == "graph" or name.startswith("packed/"):
        return ""
    if module in values:
        readers = [user for output in node.outputs for user, _ in output.uses()]
        return module_of(readers[0], values) if readers else ""
    return module


def count(graph: ir.Graph, specs: Sequence[TensorSpec], run: GraphRun) -> list[Counted]:
    """Every node of the graph in its order; of an If the cheaper branch, which runs without padding.

    ``specs``: of the graph's inputs.
    """
    shapes = value_shapes(graph, specs, run)
    values = {value.name for value in shapes if value.name}
    return [
        Counted(
            name=node.name or "",
            module=module_of(node, values),
            op=node.op_type,
            cost=cost(node, shapes),
        )
        for node in _nodes(graph)
    ]


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        branches = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        if branches:
            yield from _nodes(min(branches, key=lambda branch: sum(len(inner.inputs) for inner in branch)))


class Graphs:
    """The graphs of a bundle's models, each read once and without weights."""

    def __init__(self, source: OpenBundle) -> None:
        self._source = source
        self._read: dict[str, ir.Graph] = {}

    def of(self, model: str) -> ir.Graph:
        if model not in self._read:
            self._read[model] = ir.load(self._source.folder / self._source.variant(model).path).graph
        return self._read[model]

    def count(self, phase: Phase) -> dict[str, list[Counted]]:
        """By model: every node of its graph, with its cost over all runs of a phase."""
        return {
            model: summed(
                [
                    count(self.of(model), self._source.variant(model).inputs, run)
                    for run in phase.runs
                    if run.model == model
                ]
            )
            for model in dict.fromkeys(run.model for run in phase.runs)
        }


def reads_bytes(counted: Sequence[Counted]) -> int:
    """Everything that a call moves: a cache must hold that much for the next call to hit it."""
    return sum(each.cost.bytes for each in counted)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A phase that ran several times."""

    workload: str
    name: str
    phase: Phase
    usual_ms: float
    calls: tuple[Mapping[str, range], ...]  # each with the numbers of its runs, by model


class OperatorTimer:
    """Times the nodes of a bundle's models one by one.

    ``peaks``: of this machine with these threads; measured if None.
    """

    def __init__(self, source: OpenBundle, *, calls: int = CALLS, peaks: Peaks | None = None) -> None:
        """Raises UsageError if a backend cannot time nodes, and what opening the bundle raises."""
        self._calls, self._peaks = calls, peaks
        self._graphs, self._kind = Graphs(source), find_kind(source.manifest.kind).profile
        self._manifest, self._threads = source.manifest, source.threads
        self._folder = tempfile.TemporaryDirectory(prefix="edgecompress-profile-")
        self.timers = {
            variant.backend: _timer(variant.backend, Path(self._folder.name)) for variant in self._manifest.variants
        }
        self._subject = self._kind.open_subject(replace(source, loader=self.timers.__getitem__))
        self._runs: Counter[str] = Counter()
        self._asked: list[_Asked] = []

    def close(self) -> None:
        self._subject.close()
        self._folder.cleanup()

    def run(self, workload: Workload, usual_ms: Mapping[str, float]) -> None:
        """Run every phase of a workload of shapes. ``usual_ms``: the time of each phase without timers."""
        found = self._kind.phases(self._manifest, workload)
        for name, call in self._subject.phases(workload).items():
            calls = self._several(call, found[name])
            self._asked.append(
                _Asked(
                    workload=workload.name, name=name, phase=found[name], usual_ms=usual_ms[name], calls=tuple(calls)
                )
            )

    def finish(self) -> tuple[Peaks | None, list[OperatorProfile]]:
        """Read the timings; nothing can run afterwards. Raises HostError if the number of runs is unexpected."""
        timed = {name: self._timer_of(name).runs(name) for name in self._runs}
        for model, runs in timed.items():
            if len(runs) != self._runs[model]:
                raise HostError(
                    f"'{model}' of {self._manifest.name} ran {len(runs)} times instead of {self._runs[model]}",
                    hint="Correct the runs of each phase in its kind's profile.py.",
                )
        found = []
        for asked in self._asked:
            if self._peaks is None:
                self._peaks = measure_peaks(self._threads)
            rows = [
                row
                for model, counted in self._graphs.count(asked.phase).items()
                for row in _timed(
                    counted,
                    [_added([timed[model][i] for i in call[model]]) for call in asked.calls],
                    self._timer_of(model).runtime,
                )
            ]
            found.append(
                OperatorProfile(
                    workload=asked.workload,
                    threads=self._threads,
                    phase=asked.name,
                    calls=len(asked.calls),
                    **_summary(rows, self._peaks, asked.usual_ms),
                )
            )
        return self._peaks, found

    def _timer_of(self, model: str) -> NodeTimer:
        return self.timers[self._manifest.variant(model).backend]

    def _several(self, call: Callable[[], object], phase: Phase) -> list[Mapping[str, range]]:
        """The runs of each call, without those of the warm-up."""
        of_a_call = Counter(run.model for run in phase.runs)

        def run() -> dict[str, range]:
            call()
            first = self._runs.copy()
            self._runs.update(of_a_call)
            return {model: range(first[model], self._runs[model]) for model in of_a_call}

        for _ in range(min(_WARM_UP, self._calls - 1)):
            run()
        began, calls = time.perf_counter(), [run()]
        while len(calls) < self._calls and time.perf_counter() - began < _LONGEST_S:
            calls.append(run())
        return [*calls]


def _timer(backend: str, folder: Path) -> NodeTimer:
    timing = find_backend(backend).timing
    if timing is None:
        raise UsageError(f"{backend} cannot time nodes", hint="Give --no-operators.")
    return timing.node_timer(folder)


def _added(runs: Sequence[Durations]) -> Durations:
    whole: dict[str, float] = defaultdict(float)
    for durations in runs:
        for name, duration in durations.items():
            whole[name] += duration
    return whole


def summed(runs: Sequence[list[Counted]]) -> list[Counted]:
    """The sum over several runs of one graph."""
    return [
        Counted(
            name=same[0].name,
            module=same[0].module,
            op=same[0].op,
            cost=Cost(
                ops=sum(each.cost.ops for each in same),
                bytes=sum(each.cost.bytes for each in same),
                computes=same[0].cost.computes,
                weights=same[0].cost.weights,
            ),
            runs=len(same),
        )
        for same in zip(*runs, strict=True)
    ]


def _timed(counted: Sequence[Counted], calls: Sequence[Durations], runtime: str) -> list[tuple[Counted, float]]:
    """Milliseconds of each node in a call, and of nodes that the runtime added, listed under the runtime's name."""
    known = {each.name for each in counted}
    unknown = sorted({name for durations in calls for name in durations} - known)
    nothing = Cost(ops=0, bytes=0, computes="float32")
    rows = [*counted, *(Counted(name=name, module="", op=runtime, cost=nothing) for name in unknown)]
    return [(row, _middle([durations.get(row.name, 0.0) for durations in calls]) / 1e3) for row in rows]


def _summary(rows: Sequence[tuple[Counted, float]], peaks: Peaks, usual_ms: float) -> dict[str, Any]:
    nodes_ms = sum(ms for _, ms in rows)
    rate = read_rate(peaks, reads_bytes([row for row, _ in rows]))
    operators = [_operator(row, ms, nodes_ms, peaks, rate) for row, ms in rows if ms > 0 or row.cost.bytes]
    return {
        "call_ms": round(usual_ms, 4),
        "nodes_ms": round(nodes_ms, 4),
        "between_ms": round(max(0.0, usual_ms - nodes_ms), 4),
        "operators": tuple(operators),
    }


def _operator(row: Counted, ms: float, nodes_ms: float, peaks: Peaks, reads: float) -> Operator:
    """``reads``: bytes/s for a buffer as large as everything that a call moves, which a cache may hold."""
    rate = peaks.ops_per_s.get(row.cost.computes, peaks.ops_per_s["float32"])
    computing, moving = row.cost.ops / rate * 1e3, row.cost.bytes / reads * 1e3
    roof = max(computing, moving)
    return Operator(
        name=row.name,
        module=row.module,
        op=row.op,
        ms=round(ms, 5),
        share=round(ms / nodes_ms, 4) if nodes_ms else 0.0,
        ops=row.cost.ops,
        bytes=row.cost.bytes,
        computes=row.cost.computes,
        weights=row.cost.weights,
        bound="compute" if computing > moving else "memory",
        roof_ms=round(roof, 5),
        of_roof=round(roof / ms, 4) if ms else 0.0,
    )


def _middle(values: Sequence[float]) -> float:
    """The mean of the middle half: a median would keep the profile's whole microseconds."""
    ordered = np.sort(np.array(values))
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())
