"""Percentiles that there are calls enough for, and intervals that a noisy machine's times allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgecompress.types.profile import Drift, Interval, Percentiles

Times = npt.NDArray[np.float64]  # seconds

PERCENTILES = (50, 90, 99)
CONFIDENCE = 0.99
_BEYOND = 10  # calls beyond a percentile, or it is the luck of one
_RESAMPLES = 4000
_WINDOWS = 20
_DEGRADED = 1.1
_HEAT_S = 10.0


def calls_for(percentile: float) -> int:
    """The least number of calls that a percentile is read from."""
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


def drift(seconds: Times, at: Times) -> Drift | None:
    """Medians of windows of equal length; None where there are too few calls for one. ``at``: when each call began.

    In less than ten seconds nothing gets hot: that it became slower for good is said of longer runs alone.
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
    # From where on nearly all windows are slow, to the end: a burst that passes is no drift.
    after = None
    for start in range(1, len(known) - 2 if whole >= _HEAT_S else 0):
        if slow[start] and slow[start:].mean() >= 0.8 and slow[-3:].all():
            after = round(start * window, 3)
            break
    return Drift(
        window_s=round(window, 4), p50_ms=tuple(round(float(v) * 1e3, 4) for v in known), degrades_after_s=after
    )


def ratio_interval(launches: Sequence[Times], seed: int = 0) -> Interval:
    """Of paired ratios: the mean of each launch's median of logarithms, with a bootstrap over launches, then pairs.

    ``launches``: ratios [pairs] of each. A launch is a fresh opening of both sides: what memory a session happens to
    get makes it faster or slower for as long as it lives, and more pairs would only make sure of that. Launches are
    few, so what is resampled is spread by sqrt(n / (n - 1)), as the variance of few is too small by that factor.
    """
    logs = [np.log(ratios) for ratios in launches]
    count = len(logs)
    centers = np.array([np.median(x) for x in logs])
    middle = float(centers.mean())
    rng = np.random.default_rng(seed)
    # Within a launch only the error of its median is left, which a bootstrap of its pairs gives.
    inner = np.stack([np.median(rng.choice(x, (_RESAMPLES, len(x))), axis=1) - np.median(x) for x in logs])  # [n, R]
    picked = rng.integers(0, count, (_RESAMPLES, count))
    resampled = centers[picked] + inner[picked, np.arange(_RESAMPLES)[:, None]]
    spread = math.sqrt(count / (count - 1)) if count > 1 else 1.0
    deviations = (resampled.mean(1) - middle) * spread
    low, high = np.percentile(deviations, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    return Interval(
        low=round(math.exp(middle + low), 4), middle=round(math.exp(middle), 4), high=round(math.exp(middle + high), 4)
    )


def verdict(interval: Interval) -> tuple[str, float]:
    """In words, and the least difference that would have been seen, as a share."""
    least = max(interval.high / interval.middle, interval.middle / interval.low) - 1
    if interval.low > 1:
        return "faster", round(least, 4)
    if interval.high < 1:
        return "slower", round(least, 4)
    return "no difference seen", round(least, 4)
