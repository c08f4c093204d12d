"""What is read from times: percentiles, drift, and ratios whose intervals hold what they claim on noisy machines."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.profile.statistics import Times, _student, calls_for, drift, percentiles, ratio_interval, verdict

RUNS = 200


def test_a_percentile_takes_ten_calls_beyond_it() -> None:
    assert [calls_for(q) for q in (50, 90, 99, 99.9)] == [20, 100, 1000, 10000]
    few = percentiles(np.arange(1, 100) / 1e3)
    assert (few.p50_ms, few.p90_ms, few.p99_ms, few.max_ms, few.calls) == (50.0, None, None, 99.0, 99)
    many = percentiles(np.arange(1, 1001) / 1e3)
    assert (many.p90_ms, many.p99_ms) == (900.1, 990.01)


def test_what_becomes_slower_for_good_is_seen_and_a_burst_is_not() -> None:
    rng = np.random.default_rng(0)
    at = np.arange(2000) * 0.01
    steady = 0.01 * (1 + 0.02 * rng.standard_normal(2000))
    found = drift(steady, at)
    assert found is not None
    assert found.degrades_after_s is None
    assert len(found.p50_ms) == 20
    hot = np.where(at > 12, 1.3, 1.0) * steady
    found = drift(hot, at)
    assert found is not None
    assert found.degrades_after_s == pytest.approx(12, abs=1.1)
    burst = np.where((at > 8) & (at < 11), 1.3, 1.0) * steady
    found = drift(burst, at)
    assert found is not None
    assert found.degrades_after_s is None
    short = drift(hot, at / 10)
    assert short is not None
    assert short.degrades_after_s is None, "in two seconds nothing gets hot"
    assert drift(steady[:50], at[:50]) is None


def launches(rng: np.random.Generator, ratio: float, count: int = 16, pairs: int = 40) -> list[Times]:
    """As a shared machine gives them: a launch has luck of its own, what is opened first is slower, calls vary much."""
    found = []
    for number in range(count):
        luck = 0.02 * rng.standard_normal() + (0.03 if number % 2 else -0.03)
        first, other = (
            1 + 0.10 * np.abs(rng.standard_normal(pairs)) + (rng.random(pairs) < 0.1) * rng.exponential(0.5, pairs)
            for _ in range(2)
        )
        found.append(first / other * ratio * np.exp(luck))
    return found


def test_a_side_against_itself_shows_no_difference() -> None:
    rng = np.random.default_rng(1)
    said = [verdict(ratio_interval(launches(rng, 1.0), seed))[0] for seed in range(RUNS)]
    assert said.count("no difference seen") >= 0.95 * RUNS


def test_five_percent_are_seen() -> None:
    rng = np.random.default_rng(2)
    slower = [verdict(ratio_interval(launches(rng, 1 / 1.05), seed))[0] for seed in range(RUNS)]
    assert slower.count("slower") >= 0.9 * RUNS
    assert "faster" not in slower
    faster = [verdict(ratio_interval(launches(rng, 1.05), seed))[0] for seed in range(RUNS)]
    assert faster.count("faster") >= 0.9 * RUNS


def test_students_quantiles() -> None:
    for freedom, quantile in ((3, 5.841), (5, 4.032), (7, 3.499), (15, 2.947), (30, 2.750)):
        assert _student(freedom) == pytest.approx(quantile, rel=0.04 if freedom < 6 else 0.01)


def test_the_interval_holds_the_ratio_and_says_what_it_could_see() -> None:
    rng = np.random.default_rng(3)
    within = 0
    for seed in range(RUNS):
        interval = ratio_interval(launches(rng, 1.3), seed)
        within += interval.low <= 1.3 <= interval.high
        assert interval.low <= interval.middle <= interval.high
    assert within >= 0.95 * RUNS
    said, least = verdict(ratio_interval(launches(rng, 1.0)))
    assert said == "no difference seen"
    assert 0.002 < least < 0.08
