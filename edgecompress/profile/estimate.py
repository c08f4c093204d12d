"""``edgecompress estimate``: the latency of a bundle on a target that is not available.

The graph gives each node's operations and bytes, the target's file its peaks. How near nodes come to these peaks is
fitted to profiles of a machine or, without one, taken from a table. The bundle does not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import UsageError
from edgecompress.formats.cpu import host_cores, host_cpu_name
from edgecompress.formats.manifest import file_sha256, open_bundle
from edgecompress.formats.profile import read_profile
from edgecompress.kinds import find_kind
from edgecompress.loading import open_models
from edgecompress.profile.costs import FLOAT32
from edgecompress.profile.efficiency import (
    ATTENTION,
    NOTHING,
    ROWS,
    Factors,
    Fit,
    Work,
    fit,
    table_factors,
    usual_peaks,
    work_of,
)
from edgecompress.profile.operators import Counted, Graphs
from edgecompress.profile.peaks import measure_peaks
from edgecompress.profile.workload import workloads_of
from edgecompress.targets import LOCAL, find_target
from edgecompress.types.estimate import Estimate, Estimates, Span
from edgecompress.types.profile import Peaks, Profile, Reads
from edgecompress.types.target import Target
from edgecompress.types.workload import Phase
from edgecompress.version import __version__

_DEVIATIONS = 2.0  # to either side of the fit
_PARTS = ("overhead", "compute", "memory")

Parts = tuple[float, float, float]  # seconds of overhead, of computing, of moving


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The machine of an estimate, and the best and worst efficiency of its nodes."""

    name: str
    threads: int | None
    peaks: Peaks
    best: Callable[[str, str], Factors]  # by kind of node, and dtype of its products
    worst: Callable[[str, str], Factors]
    words: str
    memory_bytes: int | None = None


def estimate(
    bundle: Path, targets: Sequence[str], measured: Sequence[Path], shapes: str | None, threads: int | None
) -> Estimates:
    """Raises UsageError (a target without peaks too), UnknownTargetError and BundleError."""
    manifest, folder = open_bundle(bundle)
    kind, graphs = find_kind(manifest.kind).profile, Graphs(open_models(manifest, folder))
    workloads = workloads_of(manifest, shapes)
    if any(workload.requests for workload in workloads):
        raise UsageError("an estimate takes shapes, not a trace", hint="Give --shapes 1x128.")
    profiles = [read_profile(path) for path in measured]
    bases = _bases(targets, profiles, threads)
    calls = [
        (workload.name, name, phase, [each for nodes in graphs.count(phase).values() for each in nodes])
        for workload in workloads
        for name, phase in kind.phases(manifest, workload).items()
    ]
    rows = [_estimated(basis, *call, manifest.bytes) for basis in bases for call in calls]
    remarks = ["these are estimates: the bundle did not run, and the truth is expected within the span"]
    if any(basis.words.startswith("table") for basis in bases):
        remarks.append("the graph is this bundle's; an export for the target itself gives a better estimate")
    return Estimates(
        tool_version=__version__,
        bundle=bundle.name,
        identity=file_sha256(folder / "manifest.json"),
        rows=tuple(rows),
        remarks=tuple(remarks),
    )


def _bases(targets: Sequence[str], profiles: Sequence[Profile], threads: int | None) -> list[Basis]:
    if not targets and not profiles:
        raise UsageError("an estimate needs a target", hint="Give --target, or --measured with a profile.")
    if profiles and any(target != LOCAL for target in targets):
        raise UsageError(
            "a profile describes only the machine that it was made on",
            hint="Give --measured without --target, or with --target local on that machine.",
        )
    if not profiles:
        return [_of_target(find_target(name), threads) for name in targets]
    made = fit(profiles)
    if targets:
        if made.machine != host_cpu_name():
            raise UsageError(
                f"the profiles come from another machine: {made.machine}", hint="Leave out --target local."
            )
        return [_of_fit(made, LOCAL, measure_peaks(threads or host_cores()))]
    of_all = [each for profile in profiles for each in profile.peaks]
    known = {threads: usual_peaks(threads, of_all) for threads in {each.threads for each in of_all}}
    if threads is not None and threads not in known:
        raise UsageError(
            f"the profiles hold no run with {threads} threads",
            hint=f"Give --threads {max(known)}, or a profile made with --threads {threads}.",
        )
    wanted = [threads] if threads is not None else sorted(known)
    return [_of_fit(made, made.machine, known[number]) for number in wanted]


def _of_fit(made: Fit, name: str, peaks: Peaks) -> Basis:
    def factors(kind: str, _: str, deviations: float) -> Factors:
        try:
            found = made.factors(kind)
        except KeyError:
            raise UsageError(
                f"the profiles hold no node like this bundle's {kind}", hint="Profile a bundle that has such nodes."
            ) from None
        by = math.exp(deviations * made.spread)
        return Factors(overhead_s=found.overhead_s * by, compute=found.compute * by, memory=found.memory * by)

    return Basis(
        name=name,
        threads=peaks.threads,
        peaks=peaks,
        best=lambda kind, dtype: factors(kind, dtype, -_DEVIATIONS),
        worst=lambda kind, dtype: factors(kind, dtype, _DEVIATIONS),
        words=f"fitted to {made.calls} profiled calls on {made.machine}, to within {made.spread:.0%}",
    )


def _of_target(target: Target, threads: int | None) -> Basis:
    if target.name == LOCAL:
        at_once: int | None = threads or host_cores()
        peaks = measure_peaks(at_once or 1)
        words = "table of efficiencies, measured peaks"
    else:
        if threads is not None:
            raise UsageError(
                f"the peaks of {target.name} are those of the whole chip",
                hint="Leave out --threads, or give --target local.",
            )
        peaks, at_once = _peaks_of(target), target.cores
        words = "table of efficiencies, peaks from the data sheet"
    ends = {best: table_factors(target.accelerator, best=best) for best in (True, False)}

    def factors(kind: str, dtype: str, best: bool) -> Factors:
        table = ends[best]
        if kind in (ROWS, NOTHING):
            return table[kind]
        return table[ATTENTION] if "attention" in kind else table.get(dtype, table[FLOAT32])

    return Basis(
        name=target.name,
        threads=None if target.accelerator == "cuda" else at_once,
        peaks=peaks,
        best=lambda kind, dtype: factors(kind, dtype, True),
        worst=lambda kind, dtype: factors(kind, dtype, False),
        words=words,
        memory_bytes=target.memory_bytes,
    )


def _peaks_of(target: Target) -> Peaks:
    """Raises UsageError if the target's file lacks a peak."""
    lacks = [
        name
        for name, value in (
            ("memory_bandwidth_bytes_per_s", target.memory_bandwidth_bytes_per_s),
            ("peak_ops_per_s", target.peak_ops_per_s),
        )
        if not value
    ]
    if lacks:
        raise UsageError(
            f"{target.name} has no {' or '.join(lacks)}: it describes a class of machines",
            hint="Copy it (`edgecompress targets show`) to a .toml file, add the figures of your machine and give that "
            "file; or give --measured with a profile of the machine.",
        )
    assert target.memory_bandwidth_bytes_per_s is not None
    rates = dict(target.peak_ops_per_s)
    for dtype in ("float32", "float16", "int8"):  # a dtype without a peak takes another's
        rates.setdefault(dtype, rates.get("float16", rates.get("float32", max(rates.values()))))
    if target.accelerator == "cuda":
        rates["float32"] = rates["float16"]  # an export for it computes in float16
    return Peaks(
        threads=target.cores or 1,
        reads=(Reads(buffer_bytes=1, bytes_per_s=target.memory_bandwidth_bytes_per_s),),
        ops_per_s=rates,
    )


def _estimated(
    basis: Basis, workload: str, name: str, phase: Phase, counted: Sequence[Counted], bundle_bytes: int
) -> Estimate:
    works = work_of(((each.op, each.cost) for each in counted), basis.peaks)
    runs = [each.runs for each in counted]
    best, worst = _total(works, runs, basis.best), _total(works, runs, basis.worst)
    parts = dict(zip(_PARTS, (math.sqrt(a * b) for a, b in zip(best, worst, strict=True)), strict=True))
    low, high = sum(best) * 1e3, sum(worst) * 1e3
    return Estimate(
        target=basis.name,
        workload=workload,
        phase=name,
        threads=basis.threads,
        ms=Span(low=_rounded(low), middle=_rounded(math.sqrt(low * high)), high=_rounded(high)),
        bound=max(parts, key=lambda part: parts[part]),
        basis=basis.words,
        tokens=phase.tokens,
        fits_memory=None if basis.memory_bytes is None else bundle_bytes < basis.memory_bytes,
    )


def _total(works: Sequence[Work], runs: Sequence[int], factors: Callable[[str, str], Factors]) -> Parts:
    """``runs``: of each node."""
    whole = [0.0, 0.0, 0.0]
    for work, times in zip(works, runs, strict=True):
        overhead, computing, moving = factors(work.kind, work.computes).seconds(work)
        whole[0] += times * overhead
        whole[1] += computing
        whole[2] += moving
    return whole[0], whole[1], whole[2]


def _rounded(value: float) -> float:
    """Three digits: an estimate has no more."""
    return float(f"{value:.3g}")
