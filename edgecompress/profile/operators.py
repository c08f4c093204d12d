"""Where a call's time goes, node by node, and what the machine's roof would allow each.

ONNX Runtime times every node of a session of its own; the names of our graphs' nodes begin with the student's modules,
so a time is layer 3's attention and not MatMul_117's. What a node computes and moves comes from the graph.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.profile.costs import Cost, cost
from edgecompress.profile.layers import layer_of
from edgecompress.profile.peaks import measure_peaks, read_rate
from edgecompress.profile.shapes import Case, input_shapes, value_shapes
from edgecompress.profile.sides import token_ids
from edgecompress.runtime.decoder import Cancellation, Decoder
from edgecompress.runtime.models import read_prompt
from edgecompress.runtime.session import make_session
from edgecompress.types.bundle import Manifest
from edgecompress.types.profile import Operator, OperatorProfile, Peaks

CALLS, _WARM_UP = 20, 3
_LONGEST_S = 4.0
_WHOLE_LAYERS = ("EncoderLayer", "DecoderLayer", "DecoderLayerInt8")
_END = "_kernel_time"

Durations = dict[str, float]  # node -> microseconds of a call


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One node of the graph, and what it must do in one call."""

    name: str
    module: str
    op: str
    cost: Cost


def module_of(node: ir.Node, values: Collection[str]) -> str:
    """The student's module that a node computes; "" for what belongs to none, such as pooling.

    ``values``: names of the graph's values. A node that is named after one prepares it for whoever reads it.
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


def load_graph(manifest: Manifest, folder: Path) -> ir.Graph:
    """Of a bundle; its weights are not read."""
    return ir.load(folder / manifest.model).graph


def count(graph: ir.Graph, manifest: Manifest, case: Case) -> list[Counted]:
    """Every node of the graph in its order; of an If the branch that takes less, which runs where nothing is padded."""
    shapes = value_shapes(graph, manifest, case)
    values = {value.name for value in shapes if value.name}
    return [
        Counted(
            name=node.name or "",
            module=module_of(node, values),
            op=node.op_type,
            cost=cost(node, shapes, case),
        )
        for node in _nodes(graph)
    ]


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        branches = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        if branches:
            yield from _nodes(min(branches, key=lambda branch: sum(len(inner.inputs) for inner in branch)))


def reads_bytes(counted: Sequence[Counted]) -> int:
    """What a call moves in all: as much as a cache must hold for the next call to find it there."""
    return sum(each.cost.bytes for each in counted)


class OperatorTimer:
    """A session of the bundle in which ONNX Runtime times each node; for CPUs.

    ``peaks`` of this machine with these threads, where they are known; else they are measured.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, threads: int, *, calls: int = CALLS, peaks: Peaks | None = None
    ) -> None:
        self._manifest, self._threads, self._calls = manifest, threads, calls
        self._graph = load_graph(manifest, folder)
        self._folder = tempfile.TemporaryDirectory(prefix="edgecompress-profile-")
        self._session = make_session(folder, manifest, threads, profile_to=Path(self._folder.name) / "ops")
        self._peaks = peaks
        self._runs = 0
        self._wanted: list[tuple[str, str, float, list[Case], list[list[int]]]] = []

    def close(self) -> None:
        self._folder.cleanup()

    def call(self, workload: str, batch: int, tokens: int, usual_ms: float) -> None:
        """An encoder's calls. ``usual_ms``: what one takes while nothing is timed."""
        case = Case(batch=batch, tokens=tokens)
        feed = _feed(self._manifest, case)

        def run() -> list[int]:
            self._session.run(None, feed)
            return [self._next()]

        self._wanted.append((workload, "call", usual_ms, [case], self._several(run)))

    def generate(self, workload: str, batch: int, tokens: int, prefill_ms: float, step_ms: float) -> None:
        """A decoder's prompts, and steps behind them."""
        settings = self._manifest.generation
        assert settings is not None
        decoder, cancel = Decoder(self._session, settings, self._manifest.model), Cancellation()
        cache = decoder.make_cache(batch, tokens + 1)
        prompts = token_ids(batch, tokens, settings.vocab_size)
        chunk = settings.prefill_chunk_tokens
        starts = range(0, tokens, chunk)

        def read() -> list[int]:
            for row in range(batch):
                read_prompt(decoder, cache, row, prompts[row], cancel)
            return [self._next() for _ in range(batch * len(starts))]

        past, last = np.full(batch, tokens), np.zeros(1, dtype=np.int64)

        def step() -> list[int]:
            decoder.run(cache, 0, prompts[:, :1], past, last, cancel)
            return [self._next()]

        chunks = [Case(batch=1, tokens=min(chunk, tokens - start), past=start) for start in starts]
        self._wanted.append((workload, "prefill", prefill_ms, chunks * batch, self._several(read)))
        self._wanted.append(
            (workload, "decode", step_ms, [Case(batch=batch, tokens=1, past=tokens)], self._several(step))
        )

    def finish(self) -> tuple[Peaks | None, list[OperatorProfile]]:
        """End the session's profile and read it."""
        path = Path(self._session.end_profiling())
        runs = read_runs(json.loads(path.read_text(encoding="utf-8")))
        found = []
        for workload, phase, usual_ms, cases, calls in self._wanted:
            counted = summed([count(self._graph, self._manifest, case) for case in cases])
            if self._peaks is None:
                self._peaks = measure_peaks(self._threads)
            timed = [_added([runs[index] for index in call]) for call in calls]
            found.append(
                OperatorProfile(
                    workload=workload,
                    threads=self._threads,
                    phase=phase,
                    **_summary(counted, timed, self._peaks, usual_ms),
                )
            )
        return self._peaks, found

    def _next(self) -> int:
        self._runs += 1
        return self._runs - 1

    def _several(self, run: Callable[[], list[int]]) -> list[list[int]]:
        """The runs of each call, those before it was warm left out."""
        for _ in range(min(_WARM_UP, self._calls - 1)):
            run()
        began, calls = time.perf_counter(), [run()]
        while len(calls) < self._calls and time.perf_counter() - began < _LONGEST_S:
            calls.append(run())
        return calls


def _feed(manifest: Manifest, case: Case) -> dict[str, np.ndarray[Any, Any]]:
    ids = token_ids(case.batch, max(1, case.tokens), None)
    made: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in input_shapes(manifest, case).items():
        if name == "input_ids":
            made[name] = ids
        elif name == "pixel_values":
            made[name] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        else:
            made[name] = np.full(shape, int(name == "attention_mask"), dtype=np.int64)
    return made


def read_runs(events: Sequence[Mapping[str, Any]]) -> list[Durations]:
    """Of ONNX Runtime's profile: the nodes' times of each run, in microseconds.

    A node that holds others, an If, has only what they leave of its time.
    """
    bounds = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted(
        ((e["ts"], -e["dur"], e["name"].removesuffix(_END)) for e in events if e.get("name", "").endswith(_END)),
    )
    found: list[Durations] = []
    at = 0
    for begin, end in bounds:
        durations: Durations = defaultdict(float)
        around: list[tuple[float, str]] = []  # the end of each node that is open, and its name
        while at < len(nodes) and nodes[at][0] < begin:
            at += 1
        while at < len(nodes) and nodes[at][0] <= end:
            start, minus, name = nodes[at]
            while around and around[-1][0] <= start:
                around.pop()
            durations[name] -= minus
            if around and start - minus <= around[-1][0]:
                durations[around[-1][1]] += minus
            around.append((start - minus, name))
            at += 1
        found.append(dict(durations))
    return found


def _added(runs: Sequence[Durations]) -> Durations:
    whole: Durations = defaultdict(float)
    for durations in runs:
        for name, duration in durations.items():
            whole[name] += duration
    return dict(whole)


def summed(cases: Sequence[list[Counted]]) -> list[Counted]:
    """Of a call that is several runs."""
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
        )
        for same in zip(*cases, strict=True)
    ]


def _summary(counted: Sequence[Counted], timed: Sequence[Durations], peaks: Peaks, usual_ms: float) -> dict[str, Any]:
    known = {each.name for each in counted}
    unknown = sorted({name for durations in timed for name in durations} - known)  # ONNX Runtime's own
    nothing = Cost(ops=0, bytes=0, computes="float32")
    rows = [*counted, *(Counted(name=name, module="", op="onnxruntime", cost=nothing) for name in unknown)]
    times = [_middle([durations.get(row.name, 0.0) for durations in timed]) / 1e3 for row in rows]
    nodes_ms = sum(times)
    rate = read_rate(peaks, reads_bytes(counted))
    operators = [
        _operator(row, ms, nodes_ms, peaks, rate)
        for row, ms in zip(rows, times, strict=True)
        if ms > 0 or row.cost.bytes
    ]
    return {
        "calls": len(timed),
        "call_ms": round(usual_ms, 4),
        "nodes_ms": round(nodes_ms, 4),
        "between_ms": round(max(0.0, usual_ms - nodes_ms), 4),
        "operators": tuple(operators),
    }


def _operator(row: Counted, ms: float, nodes_ms: float, peaks: Peaks, reads: float) -> Operator:
    """``reads``: bytes a second of what a call moves, which may lie in a cache from one call to the next."""
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
    """The mean of the middle half: the profile counts in whole microseconds, and a median would stay on them."""
    ordered = np.sort(np.array(values))
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())
