"""How near each kind of node comes to a machine's peaks: fitted to profiles, or from a table that names its sources.

The model of a node's time is ``overhead + operations / (compute * peak) + bytes / (memory * bandwidth)``. The three
factors belong to a kind of node; machines and thread counts differ in their peaks. The fit is non-negative least
squares of relative errors over profiled nodes.
"""

from __future__ import annotations

import itertools
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.profile.costs import FLOAT32, Cost
from edgecompress.profile.peaks import read_rate
from edgecompress.types.profile import OperatorProfile, Peaks, Profile, Reads

ATTENTION, ROWS, NOTHING = "attention", "rows", "nothing"
_KINDS = {
    "MultiHeadAttention": ATTENTION,
    "Attention": ATTENTION,
    "GroupQueryAttention": ATTENTION,
    "CachedAttention": "our attention",
    "CachedAttentionInt8": "our attention",
    "EncoderLayer": "our encoder layer",
    "EncoderProjections": "our encoder layer",
    "DecoderLayer": "our decoder layer",
    "DecoderLayerInt8": "our decoder layer",
    "MatMulBlocks": "our products of blocks",
    "MatMulNBits": "products of blocks",
    "Conv": "convolutions",
}
_LEAST_OPS = 1e5  # smaller products show no efficiency
_FEW_ROWS = 16.0  # operations per byte: a block-wise product below it has few rows, and other code computes it
_LEAST_SPREAD = 0.06


@dataclass(frozen=True, kw_only=True)
class Work:
    """A node's seconds at the peaks: of its dtype (float32 if the machine has no peak for it), and of reads."""

    kind: str
    computes: str
    computing_s: float
    moving_s: float


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Overhead in seconds per node; compute and memory in seconds per second at the peak."""

    overhead_s: float
    compute: float
    memory: float

    def seconds(self, work: Work) -> tuple[float, float, float]:
        """Seconds of overhead, of computing and of moving bytes."""
        return self.overhead_s, self.compute * work.computing_s, self.memory * work.moving_s


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Factors by kind; ``spread``: standard deviation of the logarithm of measured over fitted calls."""

    by_kind: Mapping[str, Factors]
    spread: float
    calls: int
    machine: str

    def factors(self, kind: str) -> Factors:
        """Raises KeyError for a kind that the profiles do not hold."""
        if kind in self.by_kind:
            return self.by_kind[kind]
        return self.by_kind[ROWS if kind == NOTHING else kind]


def kind_of(op: str, cost: Cost) -> str:
    """The kind of a node, as far as efficiency goes."""
    if op in _KINDS:
        stored = f" of {cost.weights}" if cost.weights else ""
        few = ", few rows" if stored and cost.ops < _FEW_ROWS * cost.bytes else ""
        return f"{_KINDS[op]}{stored}{few}"
    if cost.ops == 0 and cost.bytes == 0:
        return NOTHING
    if "MatMul" in op or op in ("Gemm", "FusedGemm", "QGemm", "MoE", "QMoE"):
        return f"{cost.computes} products" if cost.ops >= _LEAST_OPS else ROWS
    return ROWS


def work_of(nodes: Iterable[tuple[str, Cost]], peaks: Peaks) -> list[Work]:
    """Work of a call's nodes, given as (operator, cost).

    A pass over rows finds them in the cache where the node before left them; weights are read at the rate of a buffer
    as large as everything that a call moves.
    """
    found = list(nodes)
    whole = read_rate(peaks, sum(cost.bytes for _, cost in found))
    made = []
    for op, cost in found:
        kind = kind_of(op, cost)
        rate = read_rate(peaks, cost.bytes) if kind == ROWS else whole
        per_s = peaks.ops_per_s.get(cost.computes, peaks.ops_per_s[FLOAT32])
        made.append(Work(kind=kind, computes=cost.computes, computing_s=cost.ops / per_s, moving_s=cost.bytes / rate))
    return made


def fit(profiles: Iterable[Profile]) -> Fit:
    """Fit profiles of one machine. Raises UsageError if they hold no operators or come from several machines."""
    found = list(profiles)
    machines = sorted({profile.host.cpu for profile in found})
    if len(machines) != 1:
        raise UsageError(
            f"these profiles come from {len(machines)} machines: {', '.join(machines)}",
            hint="Give profiles of one machine.",
        )
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)  # measured, computing, moving, in seconds
    calls: list[OperatorProfile] = []
    of_all = [each for profile in found for each in profile.peaks]
    peaks = {threads: usual_peaks(threads, of_all) for threads in {each.threads for each in of_all}}
    for profile in found:
        for call in profile.operators:
            calls.append(call)
            scale = _scale(call)
            for node, work in zip(call.operators, _work(call, peaks[call.threads]), strict=True):
                rows[work.kind].append((node.ms / 1e3 * scale, work.computing_s, work.moving_s))
    if not calls:
        raise UsageError(
            "the profiles hold no operators", hint="Make them with `edgecompress profile BUNDLE -o DIR`, on a CPU."
        )
    by_kind = {kind: _factors(np.array(values)) for kind, values in rows.items()}
    by_kind.setdefault(ROWS, Factors(overhead_s=2e-6, compute=0.0, memory=2.0))
    made = Fit(by_kind=by_kind, spread=0.0, calls=len(calls), machine=machines[0])
    errors = [np.log(call.call_ms / 1e3 / predicted(made, call, peaks[call.threads])) for call in calls]
    spread = float(np.sqrt(np.mean(np.square(errors))))
    return Fit(by_kind=by_kind, spread=max(_LEAST_SPREAD, spread), calls=len(calls), machine=machines[0])


def usual_peaks(threads: int, measured: Iterable[Peaks]) -> Peaks:
    """The medians of a machine's peaks with that many threads."""
    alike = [each for each in measured if each.threads == threads]
    reads = tuple(
        Reads(buffer_bytes=same[0].buffer_bytes, bytes_per_s=float(np.median([each.bytes_per_s for each in same])))
        for same in zip(*(each.reads for each in alike), strict=True)
    )
    rates = {name: float(np.median([each.ops_per_s[name] for each in alike])) for name in alike[0].ops_per_s}
    return Peaks(threads=threads, reads=reads, ops_per_s=rates)


def _scale(call: OperatorProfile) -> float:
    """Node times are scaled so that they add up to the call: timing lengthens nodes, and gaps count as theirs."""
    return call.call_ms / call.nodes_ms if call.nodes_ms else 1.0


def predicted(made: Fit, call: OperatorProfile, peaks: Peaks) -> float:
    """Predicted seconds of a profiled call."""
    return sum(sum(made.factors(work.kind).seconds(work)) for work in _work(call, peaks))


def _work(call: OperatorProfile, peaks: Peaks) -> list[Work]:
    costs = [
        (node.op, Cost(ops=node.ops, bytes=node.bytes, computes=node.computes, weights=node.weights))
        for node in call.operators
    ]
    return work_of(costs, peaks)


def _factors(values: np.ndarray[Any, Any]) -> Factors:
    """Non-negative least squares of relative errors, by trying every subset of the three factors."""
    measured, rest = values[:, 0], values[:, 1:]
    columns = np.column_stack([np.ones(len(values)), rest])
    weight = 1 / np.maximum(measured, 1e-6)
    best, chosen = np.inf, np.zeros(3)
    for size in (1, 2, 3):
        for used in itertools.combinations(range(3), size):
            part = columns[:, used] * weight[:, None]
            solution, *_ = np.linalg.lstsq(part, measured * weight, rcond=None)
            if (solution < 0).any():
                continue
            error = float(np.square(part @ solution - measured * weight).sum())
            if error < best - 1e-12:
                best, chosen = error, np.zeros(3)
                chosen[list(used)] = solution
    return Factors(overhead_s=float(chosen[0]), compute=float(chosen[1]), memory=float(chosen[2]))


def table_factors(accelerator: str, *, best: bool) -> Mapping[str, Factors]:
    """One end of the table for machines without a profile: the best factors, or the worst."""
    path = Path(str(resources.files("edgecompress_targets"))) / "efficiency" / f"{accelerator}.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))

    def end(pair: Sequence[float]) -> float:
        return max(pair) if best else min(pair)

    low, high = table["overhead_us"]
    overhead = (low if best else high) * 1e-6
    memory, compute = 1 / end(table["memory"]), table["compute"]
    rows = Factors(overhead_s=overhead, compute=0.0, memory=1 / end(table["rows"]))
    made = {
        dtype: Factors(overhead_s=overhead, compute=1 / end(pair), memory=memory) for dtype, pair in compute.items()
    }
    return {**made, ROWS: rows, NOTHING: Factors(overhead_s=0.0, compute=0.0, memory=0.0)}
