"""Paired timing: the sides run in turn, and ratios are taken round by round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.types.arrays import Feed, Run
from edgecompress.types.case import Case
from edgecompress.types.report import Latency

_BUDGET_S = 1.5  # per case and side


@dataclass(frozen=True, kw_only=True)
class Timing:
    by_feed_ms: tuple[float, ...]  # medians
    speedup: float  # over the first side, median of the ratios round by round


def time_in_turn(sides: Mapping[str, Run], feed: Feed) -> dict[str, list[float]]:
    """Wall seconds of each side on one feed, A B A B …, after two rounds of warm-up."""
    rounds = 5
    for _ in range(2):
        started = time.perf_counter()
        for run in sides.values():
            run(feed)
        slowest = (time.perf_counter() - started) / len(sides)
        rounds = int(np.clip(_BUDGET_S / max(slowest, 1e-5), 7, 50))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            run(feed)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(sides: Mapping[str, Run], feeds: Sequence[Feed]) -> dict[str, Timing]:
    """Each side's speed-up over the first (geometric mean over the feeds) and its median time on each feed."""
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    medians: dict[str, list[float]] = {name: [] for name in sides}
    for feed in feeds:
        seconds = time_in_turn(sides, feed)
        baseline = np.array(next(iter(seconds.values())))
        for name, values in seconds.items():
            ratios[name].append(float(np.median(baseline / np.array(values))))
            medians[name].append(float(np.median(values)) * 1e3)
    return {
        name: Timing(
            by_feed_ms=tuple(medians[name]),
            speedup=float(np.exp(np.mean(np.log(ratios[name])))),
        )
        for name in sides
    }


def percentiles(run: Run, case: Case, feed: Feed, *, threads: int) -> Latency:
    """p50, p90 and p99 of one case."""
    seconds = np.array(time_in_turn({"model": run}, feed)["model"]) * 1e3
    p50, p90, p99 = (round(float(np.percentile(seconds, q)), 3) for q in (50, 90, 99))
    return Latency(
        case=case.name, sizes=case.sizes, threads=threads, p50_ms=p50, p90_ms=p90, p99_ms=p99, runs=len(seconds)
    )
