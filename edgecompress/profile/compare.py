"""``edgecompress compare``: sides in turn, pair by pair, over several launches; a ratio, its interval, a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.profile.host import Calibration, describe_host
from edgecompress.profile.sides import Spec, inputs_of
from edgecompress.profile.statistics import Times, ratio_interval, verdict
from edgecompress.runtime.subject import Side
from edgecompress.types.arrays import Array, Feed
from edgecompress.types.profile import Compared, Comparison
from edgecompress.types.workload import Workload
from edgecompress.version import __version__

LAUNCHES, PAIRS = 16, 40
_LEAST_LAUNCHES, _LEAST_PAIRS = 8, 5
_WARM_CALLS = 3
_LEAST_S = 0.002  # of each half of a pair: short calls repeat until they take this long

Show = Callable[[str], None]


def compare(
    specs: Sequence[Spec],
    workloads: Sequence[Workload],
    threads: int,
    *,
    launches: int = LAUNCHES,
    pairs: int = PAIRS,
    show: Show = lambda _: None,
) -> Comparison:
    """Compare each side with the first.

    Every launch reopens all sides, every second launch in reverse order; the order alternates from pair to pair.
    Raises UsageError for sides that cannot be compared, and what opening a side raises.
    """
    _check(specs, launches, pairs)
    feeds = [inputs_of(workload, specs) for workload in workloads]
    calibration = Calibration()
    calibration.take()
    ratios: dict[tuple[int, int], list[Times]] = {}
    seconds: dict[tuple[int, int], list[float]] = {}
    agreement: dict[tuple[int, int], float | None] = {}
    for launch in range(launches):
        show(f"launch {launch + 1} of {launches}")
        order = list(range(len(specs)))[:: -1 if launch % 2 else 1]
        sides: dict[int, Side] = {}
        try:
            for index in order:
                sides[index] = specs[index].open(threads)
            for w, feed in enumerate(feeds):
                if launch == 0:
                    outputs = [sides[i].run(feed).copy() for i in range(len(specs))]
                    for i, output in enumerate(outputs):
                        agreement[i, w] = _agreement(outputs[0], output)
                for i, times in _timed(sides, feed, pairs).items():
                    seconds.setdefault((i, w), []).extend(times)
                    ratios.setdefault((i, w), [])
                first = np.array(seconds[0, w][-pairs:])
                for i in range(len(specs)):
                    ratios[i, w].append(first / np.array(seconds[i, w][-pairs:]))
        finally:
            for side in sides.values():
                side.close()
        calibration.take()
    rows = []
    for w, workload in enumerate(workloads):
        for i, spec in enumerate(specs):
            interval = ratio_interval(ratios[i, w])
            said, least = verdict(interval)
            rows.append(
                Compared(
                    side=spec.name,
                    workload=workload.name,
                    p50_ms=round(float(np.median(seconds[i, w])) * 1e3, 4),
                    first_over_it=interval,
                    verdict="the first" if i == 0 else said,
                    least_difference=least,
                    agreement=agreement[i, w],
                )
            )
    noise = calibration.noise()
    remarks = ["the host was noisy, which widens the intervals"] if noise.noisy else []
    return Comparison(
        tool_version=__version__,
        sides=tuple(spec.name for spec in specs),
        threads=threads,
        launches=launches,
        pairs=pairs,
        host=describe_host(),
        noise=noise,
        rows=tuple(rows),
        remarks=tuple(remarks),
    )


def _check(specs: Sequence[Spec], launches: int, pairs: int) -> None:
    if len(specs) < 2:
        raise UsageError("a comparison needs at least two sides", hint="Name another; the same one twice is fine.")
    if launches < _LEAST_LAUNCHES or launches % 2 or pairs < _LEAST_PAIRS:
        raise UsageError(
            f"an interval needs at least {_LEAST_LAUNCHES} launches, an even number, of at least {_LEAST_PAIRS} pairs",
            hint="Leave out --launches and --pairs.",
        )


def _timed(sides: dict[int, Side], feed: Feed, pairs: int) -> dict[int, list[float]]:
    """Seconds per call of each side, one entry a pair: A B, B A, A B, …, so that a slowdown hits both."""
    order, repeats = list(sides), {}
    for index in order:
        for _ in range(_WARM_CALLS):
            sides[index].run(feed)
        started = time.perf_counter()
        sides[index].run(feed)
        repeats[index] = max(1, int(np.ceil(_LEAST_S / max(time.perf_counter() - started, 1e-7))))
    found: dict[int, list[float]] = {index: [] for index in order}
    for _ in range(pairs):
        for index in order:
            run, times = sides[index].run, repeats[index]
            run(feed)  # refills the caches that the other side used
            started = time.perf_counter()
            for _ in range(times):
                run(feed)
            found[index].append((time.perf_counter() - started) / times)
        order.reverse()
    return found


def _agreement(first: Array, other: Array) -> float | None:
    """Mean cosine of the outputs, item by item; None if their shapes differ."""
    if first.shape != other.shape:
        return None
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (first, other))
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return round(float(((a * b).sum(1) / lengths).mean()), 5)
