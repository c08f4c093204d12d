"""Calls in sequence: a warm-up until they are steady, then the timed ones.

The loop adds two clock readings and three assignments per call, about 0.2 microseconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgecompress.profile.statistics import PERCENTILES, Times, calls_for

_STEADY = 0.03  # relative difference of two windows' medians
_LONGEST_WARM_UP_S = 3.0
_WINDOW_CALLS, _WINDOW_S = 5, 0.1
_MOST_CALLS = 1_000_000
DEFAULT_MOST_S = 20.0

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """``seconds`` [N] of each call, and its start [N], from the first one's."""

    seconds: Times
    at: Times

    @property
    def whole_s(self) -> float:
        return float(self.at[-1] + self.seconds[-1])


def warm_up(call: Call, most_s: float = _LONGEST_WARM_UP_S) -> float:
    """Call until two windows have the same median, or for ``most_s``; return the last median, in seconds."""
    began, before = time.perf_counter(), 0.0
    while True:
        window: list[float] = []
        started = time.perf_counter()
        while len(window) < _WINDOW_CALLS or (
            time.perf_counter() - started < _WINDOW_S and len(window) < 100 * _WINDOW_CALLS
        ):
            at = time.perf_counter()
            call()
            window.append(time.perf_counter() - at)
            if time.perf_counter() - began > most_s and len(window) >= 2:
                return float(np.median(window))
        median = float(np.median(window))
        if before and abs(median - before) <= _STEADY * before:
            return median
        before = median


def measure(
    call: Call, duration_s: float | None, *, needs: float = max(PERCENTILES), whole_s: float | None = None
) -> Timed:
    """Call it for ``duration_s``; None: until there are enough calls for the percentile ``needs``, at most 20 s.

    ``whole_s``: what a call takes, if it is known; else calls warm it up first.
    """
    enough = calls_for(needs)
    if whole_s is None:
        warm_up(call)
    clock = time.perf_counter_ns
    began_ns: list[int] = []
    ended_ns: list[int] = []
    first = clock()
    limit = first + int((duration_s if duration_s is not None else DEFAULT_MOST_S) * 1e9)
    while True:
        start = clock()
        call()
        end = clock()
        began_ns.append(start)
        ended_ns.append(end)
        if end >= limit or len(began_ns) >= _MOST_CALLS or (duration_s is None and len(began_ns) >= enough):
            break
    began, ended = np.array(began_ns, dtype=np.float64), np.array(ended_ns, dtype=np.float64)
    return Timed((ended - began) / 1e9, (began - began[0]) / 1e9)


def missing_percentiles(seconds: Times, wanted: float) -> str | None:
    """Which of p90, p99 and ``wanted`` there are too few calls for, and how long they take; None if for none."""
    calls = len(seconds)
    missing = [q for q in sorted({*PERCENTILES, wanted}) if q > 50 and calls < calls_for(q)]
    if not missing:
        return None
    names = " and ".join(f"p{q:g}" for q in missing)
    needed = " and ".join(f"{calls_for(q):,}" for q in missing)
    duration = 1.1 * calls_for(missing[-1]) * float(seconds.mean())
    return f"{calls:,} calls are too few for {names} (of {needed}): --duration {_rounded_up(duration)} is long enough"


def _rounded_up(seconds: float) -> str:
    seconds = round(seconds, 6)  # 550.0000000000001 is 550
    return f"{math.ceil(seconds * 10) / 10:.1f}" if seconds < 10 else f"{math.ceil(seconds)}"


class WallClock:
    """Tells by the monotonic clock whether the system clock was set meanwhile."""

    def __init__(self) -> None:
        self._wall, self._monotonic = time.time(), time.monotonic()

    def jump_s(self) -> float:
        """Seconds by which it was set; 0.0 if less than one."""
        jump = (time.time() - self._wall) - (time.monotonic() - self._monotonic)
        return round(jump, 3) if abs(jump) >= 1 else 0.0
