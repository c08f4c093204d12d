"""MLPerf's server and offline scenarios: requests at random moments, and a batch of texts at full speed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.profile.statistics import calls_for, percentiles
from edgecompress.types.profile import Server

_SEARCH_STEPS = 6
_DEFAULT_SERVER_S = 5.0
_SPIN_S = 0.0005  # the end of a wait is a busy loop: a sleep may overrun


def serve(call: Callable[[], object], per_s: float, duration_s: float, bound_ms: float | None, seed: int = 0) -> Server:
    """Requests at random moments, ``per_s`` on average, served in sequence.

    Arrival times are drawn in advance, so a request that waits for a slow one before it counts its wait. A client that
    sends the next request only after an answer would not see that wait (coordinated omission).
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / per_s, max(int(per_s * duration_s * 1.5) + 10, 2))
    arrivals = np.cumsum(gaps)
    arrivals = arrivals[arrivals < duration_s]
    if len(arrivals) == 0:
        raise UsageError(
            f"at {per_s:g} requests/s none arrives within {duration_s:g} s", hint="Give a longer --duration."
        )
    latencies = np.empty(len(arrivals))
    began = time.perf_counter()
    for index, arrival in enumerate(arrivals):
        wait = began + arrival - time.perf_counter()
        if wait > _SPIN_S:
            time.sleep(wait - _SPIN_S)
        while time.perf_counter() < began + arrival:
            pass
        call()
        latencies[index] = time.perf_counter() - began - arrival
    ended = time.perf_counter() - began
    found = percentiles(latencies)
    within = None
    if bound_ms is not None:
        within = bool(np.percentile(latencies, 99) * 1e3 <= bound_ms)
    return Server(
        asked_per_s=round(per_s, 4),
        done_per_s=round(len(arrivals) / ended, 4),
        latency=found,
        bound_ms=bound_ms,
        within_bound=within,
    )


def most_served(call: Callable[[], object], usual_s: float, bound_ms: float, duration_s: float | None) -> Server:
    """Bisect for the highest rate whose p99 stays within the bound; return the measurement at that rate.

    Raises UsageError if a single call takes longer than the bound.
    """
    if usual_s * 1e3 > bound_ms:
        raise UsageError(
            f"a single call takes {usual_s * 1e3:.1f} ms, longer than the bound of {bound_ms:g} ms",
            hint="Give a larger --bound-ms, or a smaller shape.",
        )
    low, high, best = 0.0, 1 / usual_s, None
    for step in range(_SEARCH_STEPS):
        rate = (low + high) / 2
        # Long enough for a p99 at this rate, unless a duration is given.
        seconds = duration_s if duration_s is not None else max(_DEFAULT_SERVER_S, min(calls_for(99) / rate, 20.0))
        found = serve(call, rate, seconds, bound_ms, seed=step)
        if found.within_bound:
            low, best = rate, found
        else:
            high = rate
    if best is None:
        raise UsageError(
            f"no rate down to {high:.2f} requests/s keeps its p99 within {bound_ms:g} ms",
            hint="Give a larger --bound-ms.",
        )
    return best


def offline(call: Callable[[], object], texts: int, duration_s: float | None) -> tuple[float, float]:
    """Texts/s over at least three calls, and the seconds that they took."""
    call()
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < (duration_s or 2.0):
        call()
        count += 1
    seconds = time.perf_counter() - began
    return count * texts / seconds, seconds
