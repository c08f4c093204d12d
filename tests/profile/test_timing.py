"""Calls in a row, calls at random moments, and what a machine says of itself. No time is asserted but for its floor."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import UsageError
from edgecompress.profile import host, timing
from edgecompress.profile.energy import EnergyMeter
from edgecompress.profile.host import Calibration, describe_host
from edgecompress.profile.scenarios import most_served, offline, serve
from edgecompress.profile.timing import WallClock, measure, missing_percentiles, warm_up


def test_without_a_duration_there_are_calls_enough() -> None:
    calls = []
    timed = measure(lambda: calls.append(0), None, needs=90)
    assert len(timed.seconds) == len(timed.at) == 100
    assert (timed.seconds > 0).all()
    assert timed.at[0] == 0
    assert (np.diff(timed.at) > 0).all()


def test_a_duration_is_kept() -> None:
    timed = measure(lambda: time.sleep(0.001), 0.3, needs=50)
    assert timed.whole_s + 0.002 >= 0.3
    assert (timed.seconds >= 0.001).all()


def test_a_duration_that_is_too_short_is_measured_and_says_what_is_missing() -> None:
    timed = measure(lambda: time.sleep(0.001), 0.05, whole_s=0.001)
    assert 1 <= len(timed.seconds) < 100
    seconds = np.full(40, 0.05)
    assert missing_percentiles(seconds, 99) == (
        "40 calls are too few for p90 and p99 (of 100 and 1,000): --duration 55 is long enough"
    )
    assert missing_percentiles(np.full(1000, 0.05), 99) is None
    found = missing_percentiles(np.full(1000, 0.05), 99.9)
    assert found == "1,000 calls are too few for p99.9 (of 10,000): --duration 550 is long enough"


def test_warm_up_ends_when_calls_are_steady() -> None:
    seconds = iter([0.04] * 5 + [0.02] * 5 + [0.002] * 10_000)
    usual = warm_up(lambda: time.sleep(next(seconds)))
    assert 0.002 <= usual < 0.02
    endless = iter(0.001 * (1 + i % 97) for i in range(10**6))
    assert warm_up(lambda: time.sleep(next(endless)), most_s=0.3) > 0


def test_a_clock_that_is_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock()
    assert clock.jump_s() == 0.0
    real = time.time
    monkeypatch.setattr(timing.time, "time", lambda: real() - 3600)
    assert clock.jump_s() == pytest.approx(-3600, abs=1)


def test_a_request_that_waits_has_waited() -> None:
    """One slow call among quick ones: a client that waits for each answer would have met it once."""
    numbers = iter(range(10**6))

    def call() -> None:
        time.sleep(0.3 if next(numbers) == 5 else 0.0002)

    found = serve(call, per_s=100, duration_s=1.0, bound_ms=50)
    assert found.latency.max_ms >= 300
    assert found.latency.p50_ms is not None
    # Some thirty requests come while the slow one runs.
    assert found.latency.mean_ms > 20
    assert found.within_bound is False
    assert 50 < found.latency.calls < 160
    again = serve(lambda: None, per_s=100, duration_s=0.3, bound_ms=None)
    assert again.within_bound is None


def test_a_bound_that_nothing_keeps() -> None:
    with pytest.raises(UsageError, match=r"takes 20\.0 ms, longer than the bound of 5 ms"):
        most_served(lambda: None, 0.02, 5, None)
    with pytest.raises(UsageError, match="none arrives within"):
        serve(lambda: None, per_s=0.001, duration_s=0.01, bound_ms=None)


def test_the_most_that_keeps_a_bound_is_below_what_can_be_done() -> None:
    found = most_served(lambda: time.sleep(0.005), 0.005, 40, 0.5)
    assert found.within_bound
    assert 0 < found.asked_per_s < 200


def test_offline_counts_texts() -> None:
    per_s, seconds = offline(lambda: time.sleep(0.01), 50, 0.1)
    assert 0 < per_s <= 50 / 0.01
    assert seconds >= 0.1


def test_noise_is_what_the_loop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(*medians: float, wobble: float = 0.0) -> host.Noise:
        made = Calibration()
        made._seconds = [[m * (1 + wobble * (i % 5)) for i in range(40)] for m in medians]
        return made.noise()

    assert not noise(1e-4, 1.01e-4).noisy
    assert noise(1e-4, 1.3e-4).noisy
    assert noise(1e-4, wobble=0.1).noisy
    assert noise(1e-4, 2e-4).slowest_over_fastest == 2
    real = Calibration()
    real.take()
    assert real.noise().loop_ms > 0


def test_the_host_describes_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = describe_host()
    assert found.cores >= 1
    assert {"edgecompress", "numpy", "onnxruntime"} <= set(found.versions)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(host, "_GROUP", tmp_path)
    assert describe_host().cpu_limit == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert describe_host().cpu_limit is None
    governor = tmp_path / "cpu0" / "cpufreq"
    governor.mkdir(parents=True)
    (governor / "scaling_governor").write_text("powersave\n")
    (governor / "scaling_cur_freq").write_text("1800000\n")
    monkeypatch.setattr(host, "_CPUS", tmp_path)
    found = describe_host()
    assert (found.governor, found.clock_mhz) == ("powersave", (1800.0,))


def test_energy_is_measured_or_not_told(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()
    (package / "max_energy_range_uj").write_text("5000000")
    (package / "energy_uj").write_text("4000000")
    meter = EnergyMeter(tmp_path)
    (package / "energy_uj").write_text("4500000")
    assert meter.joules() == 0.5
    (package / "energy_uj").write_text("1000000")
    assert meter.joules() == 2.0, "the counter began anew"
    (package / "energy_uj").write_text("4000000")
    assert meter.joules() is None, "never zero"
    (package / "energy_uj").unlink()
    assert meter.joules() is None
    assert EnergyMeter(tmp_path).joules() is None
