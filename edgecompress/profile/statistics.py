"""Percentiles from enough calls, and intervals that hold on a noisy machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgecompress.types.profile import Drift, Interval, Measurement, Percentiles

Times = npt.NDArray[np.float64]  # seconds

PERCENTILES = (50, 90, 99)
CONFIDENCE = 0.99
_Z = 2.575829  # of the normal distribution, for that confidence
_BEYOND = 10  # calls beyond a percentile, so that no single one decides
_RESAMPLES = 4000
_WINDOWS = 20
_DEGRADED = 1.1
_HEAT_S = 10.0


def calls_for(percentile: float) -> int:
    """The least number of calls for a percentile."""
    return math.ceil(round(_BEYOND / (1 - percentile / 100), 6))


def percentiles(seconds: Times) -> Percentiles:
    """``seconds`` [N], N > 0."""
    found = {
        f"p{q}_ms": round(float(np.percentile(seconds, q)) * 1e3, 4)
        for q in PERCENTILES
        if len(seconds) >= calls_for(q) or q == 50
    }
    return Percentiles(
        calls=len(seconds),
        mean_ms=round(float(seconds.mean()) * 1e3, 4),
        max_ms=round(float(seconds.max()) * 1e3, 4),
        **found,
    )


def quantiles(seconds: Times) -> tuple[float, ...]:
    """The 0th to the 100th percentile, in ms, for histograms."""
    return tuple(round(float(q) * 1e3, 4) for q in np.percentile(seconds, range(101)))


def drift(seconds: Times, at: Times) -> Drift | None:
    """Medians of windows of equal length; None if there are too few calls. ``at``: when each call began, in seconds.

    Nothing heats up in less than ten seconds: only longer runs are reported as slower for good.
    """
    if len(seconds) < 5 * _WINDOWS:
        return None
    whole = float(at[-1] - at[0])
    if whole <= 0:
        return None
    places = np.minimum((at - at[0]) / whole * _WINDOWS, _WINDOWS - 1).astype(np.int64)
    medians = [float(np.median(seconds[places == i])) if (places == i).any() else math.nan for i in range(_WINDOWS)]
    known = np.array([value for value in medians if not math.isnan(value)])
    window = whole / _WINDOWS
    slow = known > _DEGRADED * float(np.median(known[: max(3, len(known) // 5)]))
    # The start of a slow spell that lasts to the end: a passing burst is not drift.
    after = None
    for start in range(1, len(known) - 2 if whole >= _HEAT_S else 0):
        if slow[start] and slow[start:].mean() >= 0.8 and slow[-3:].all():
            after = round(start * window, 3)
            break
    return Drift(
        window_s=round(window, 4), p50_ms=tuple(round(float(v) * 1e3, 4) for v in known), degrades_after_s=after
    )


def ratio_interval(launches: Sequence[Times], seed: int = 0) -> Interval:
    """Of paired ratios, ``launches`` [pairs] of each: the mean of their medians' logarithms, with a bootstrap interval.

    A launch opens both sides anew. The memory that a session happens to get makes it faster or slower as long as it
    lives, which more pairs do not average out, so launches are resampled: in twos with opposite opening order, since
    the side opened first tends to be a few percent slower. As they are few, the interval is widened by the ratio of
    Student's quantile to the normal one.
    """
    medians = np.array([np.median(np.log(ratios)) for ratios in launches])
    units = medians[: len(medians) // 2 * 2].reshape(-1, 2).mean(1)
    count, middle = len(units), float(units.mean())
    rng = np.random.default_rng(seed)
    means = units[rng.integers(0, count, (_RESAMPLES, count))].mean(1)
    wider = _student(count - 1) / _Z * math.sqrt(count / (count - 1))
    low, high = wider * np.percentile(means - middle, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    return Interval(
        low=round(math.exp(middle + low), 4), middle=round(math.exp(middle), 4), high=round(math.exp(middle + high), 4)
    )


def _student(freedom: int) -> float:
    """Student's quantile to the normal one ``_Z``, by Fisher's expansion (Abramowitz and Stegun 26.7.5)."""
    z, v = _Z, freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + first / v + second / v**2 + third / v**3)


def verdict(interval: Interval) -> tuple[str, float]:
    """The verdict, and the smallest difference that this interval can show, as a share."""
    least = max(interval.high / interval.middle, interval.middle / interval.low) - 1
    if interval.low > 1:
        return "faster", round(least, 4)
    if interval.high < 1:
        return "slower", round(least, 4)
    return "no difference seen", round(least, 4)


def remarks_in_common(measurements: Sequence[Measurement]) -> list[str]:
    """Each remark once, with the cases that it applies to."""
    said: dict[str, list[str]] = {}
    for m in measurements:
        for remark in m.remarks:
            said.setdefault(remark, []).append(f"{m.workload} at {m.threads}")
    return [
        f"{', '.join(where)} thread{'s' * (not where[-1].endswith(' at 1'))}: {remark}"
        for remark, where in said.items()
    ]
