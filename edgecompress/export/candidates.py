"""Tries what an export could be, each held against PyTorch and timed in turn, and takes one: encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgecompress.backends.onnxruntime_cpu.compile import at_accuracy_level, has_accuracy_level
from edgecompress.errors import EdgeCompressError
from edgecompress.export.choice import choose
from edgecompress.graph import timing as latency
from edgecompress.graph.sessions import open_session
from edgecompress.targets import accuracy_levels
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import KernelLibrary
from edgecompress.types.graph import Graph
from edgecompress.types.report import Candidate, Fidelity, KernelUse

if TYPE_CHECKING:
    from edgecompress.export.pipeline import Clock, Plan


@dataclass(frozen=True, kw_only=True)
class Taken:
    graph: Graph
    fidelity: Fidelity
    table: tuple[Candidate, ...]  # empty if there was nothing to choose from
    kernels: tuple[KernelUse, ...] = ()
    library: KernelLibrary | None = None  # of the kernels that are used


def take(
    plan: Plan,
    clock: Clock,
    threads: int,
    compiled: Callable[[str], Graph],
    fidelity: Callable[[Graph], Fidelity],
    shapes: Callable[[], Mapping[tuple[int, int], Feed]],
) -> Taken:
    """Make every candidate of the plan, with ``--accuracy-level auto`` at every level that the target has, and choose.

    ``shapes`` gives (batch, tokens) -> feed; speed is the geometric mean over them. Raises QualityBudgetError if there
    are several and none is within the budget; one alone is taken as it is.
    """
    graphs: list[Graph | None] = []
    table: list[Candidate] = []
    for name in plan.candidates:
        try:
            made = compiled(name)
        except EdgeCompressError as error:
            if len(plan.candidates) == 1:
                raise
            graphs.append(None)
            table.append(_row(name, verdict=f"refused: {error.message}"))
            continue
        for graph, level in _variants(plan, made):
            with clock.stage("verify", name):
                found = fidelity(graph)
            graphs.append(graph)
            table.append(_row(name, fidelity=found, model_bytes=graph.bytes_on_disk, accuracy_level=level))
    if len(table) == 1:
        assert graphs[0] is not None
        assert table[0].fidelity is not None
        return Taken(graph=graphs[0], fidelity=table[0].fidelity, table=())
    if plan.measured_here and sum(graph is not None for graph in graphs) > 1:
        with clock.stage("measure", "candidates in turn"):
            table = _timed(graphs, table, threads, shapes())
    choice = choose(table, plan.recipe.quality)
    best, chosen = graphs[choice.index], table[choice.index].fidelity
    assert best is not None
    assert chosen is not None
    return Taken(graph=best, fidelity=chosen, table=choice.table)


def _variants(plan: Plan, graph: Graph) -> list[tuple[Graph, int | None]]:
    """The graph at each accuracy level that is asked for; None where it has no such knob, or it was set."""
    if plan.recipe.quantize.accuracy_level != "auto" or not has_accuracy_level(graph):
        return [(graph, None)]
    return [(at_accuracy_level(graph, level), level) for level in accuracy_levels(plan.target)]


def _timed(
    graphs: list[Graph | None], table: list[Candidate], threads: int, shapes: Mapping[tuple[int, int], Feed]
) -> list[Candidate]:
    sides = {str(i): open_session(g.path, threads, g.library) for i, g in enumerate(graphs) if g is not None}
    timings = latency.compare(sides, list(shapes.values()))
    labels = [f"{batch}×{tokens}" if tokens else f"batch {batch}" for batch, tokens in shapes]
    rows = []
    for index, row in enumerate(table):
        timing = timings.get(str(index))
        if timing is not None:
            row = replace(
                row,
                speedup=round(timing.speedup, 3),
                latency_ms=round(timing.median_ms, 3),
                shapes_ms={label: round(ms, 3) for label, ms in zip(labels, timing.by_feed_ms, strict=True)},
            )
        rows.append(row)
    return rows


def _row(
    precision: str,
    *,
    fidelity: Fidelity | None = None,
    model_bytes: int = 0,
    verdict: str = "",
    accuracy_level: int | None = None,
) -> Candidate:
    return Candidate(
        precision=precision,
        fidelity=fidelity,
        speedup=None,
        latency_ms=None,
        model_bytes=model_bytes,
        verdict=verdict,
        accuracy_level=accuracy_level,
    )
