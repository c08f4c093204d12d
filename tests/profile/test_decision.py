"""The decision at the top of a report: what it says, and that it claims nothing unmeasured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgecompress.profile.decision import NO, NOTE, OPEN, YES, Answer, answers, summary
from edgecompress.types.profile import Noise, Profile
from tests.profile import examples


def by_topic(profile: Profile) -> dict[str, Answer]:
    found = answers(profile)
    assert len({each.topic for each in found}) == len(found)
    return {each.topic: each for each in found}


def test_a_bundle_that_is_fit() -> None:
    found = by_topic(examples.held(examples.encoder(), 1000))
    assert found["Latency"].state == YES
    assert found["Latency"].headline.endswith("at p90, bound 1000 ms")
    assert "Slowest of 10 cases: 8x256, 1 thread. All are within the bound." in found["Latency"].evidence
    assert found["Quality"].state == YES
    assert found["Quality"].headline == "mean cosine 0.9987"
    assert "128 held-out samples" in found["Quality"].evidence
    assert found["Gain over fp32"].headline == "3.49× as fast, 3.9× smaller"
    assert found["Memory"].headline == "126.0 MB at its peak"
    assert "1.6% of the 8.00 GB" in found["Memory"].evidence
    assert found["Start"].headline == "410 ms to the first result"
    assert found["Terms of use"].headline == "apache-2.0"
    assert found["Measurement conditions"].state == YES
    assert summary(list(found.values())) == (YES, "Every check passes.")


def test_a_missed_budget_is_named_with_its_cases() -> None:
    found = by_topic(examples.held(examples.encoder(), 100))
    latency = found["Latency"]
    assert latency.state == NO
    assert latency.headline.endswith("at p90, bound 100 ms")
    assert "Beyond the bound: 8x256, 1 thread; 8x256, 2 threads." in latency.evidence
    assert summary(list(found.values())) == (NO, "Not ready: latency.")


def test_too_few_calls_are_no_answer() -> None:
    found = by_topic(examples.held(examples.smallest(), 100))
    assert found["Latency"].state == OPEN
    assert "Too few calls for p90" in found["Latency"].evidence
    state, words = summary(list(found.values()))
    assert state == OPEN
    assert words.startswith("Nothing measured rules it out. Still open: latency, memory")


def test_without_a_budget_the_latency_is_open() -> None:
    found = by_topic(examples.encoder())
    assert found["Latency"].state == OPEN
    assert "--bound-ms" in found["Latency"].evidence
    assert "8x256, 2 threads" in found["Latency"].evidence, "the last shape with the most threads"


@pytest.mark.parametrize(("within", "state"), [(True, YES), (False, NO)])
def test_requests_under_load(within: bool, state: str) -> None:
    found = by_topic(examples.served(examples.encoder(), within=within))
    assert found["Latency under load"].state == state
    assert found["Latency under load"].headline == "12.00 ms at p99, bound 20 ms"


def test_a_bundle_that_was_never_verified_is_not_ready() -> None:
    found = by_topic(replace(examples.encoder(), verified=False))
    assert (found["Quality"].state, found["Quality"].headline) == (NO, "never verified")


def test_terms_that_nobody_declared_are_open() -> None:
    terms = "the terms of x are unknown: it has no card, and nothing is declared"
    found = by_topic(replace(examples.encoder(), terms=terms, terms_open=True))
    assert found["Terms of use"].state == OPEN
    assert terms in found["Terms of use"].evidence
    assert "Terms of use" not in by_topic(examples.smallest()), "an older profile does not say"


def test_a_host_that_makes_figures_doubtful() -> None:
    base = examples.encoder()
    noisy = replace(base, noise=Noise(loop_ms=0.1, spread=0.4, slowest_over_fastest=1.4, noisy=True))
    busy = replace(base, host=replace(base.host, load_average_1min=3.0))
    virtual = replace(base, host=replace(base.host, virtual_machine=True))
    first = base.measurements[0]
    assert first.latency is not None
    wide = replace(base, measurements=(replace(first, latency=replace(first.latency, p50_ms=1.0, p90_ms=2.0)),))
    trace = replace(wide, measurements=(replace(wide.measurements[0], workload="requests.jsonl"),))
    assert by_topic(trace)["Measurement conditions"].state == YES, "requests of a trace differ by themselves"
    for odd, words in (
        (noisy, "The host was noisy"),
        (busy, "a load of 3 on 4 cores"),
        (virtual, "a virtual machine"),
        (wide, "p90 is 2.0 times p50 (1x16, 1 thread)"),
    ):
        conditions = by_topic(odd)["Measurement conditions"]
        assert conditions.state == OPEN
        assert words in conditions.evidence


def test_what_was_not_measured_is_no_figure() -> None:
    found = by_topic(examples.smallest())
    assert (found["Memory"].state, found["Memory"].headline) == (OPEN, "not measured")
    assert "Start" not in found
    assert "Gain over fp32" not in found
    assert "Energy is not measurable here." in found["Throughput and cost"].evidence
    one = replace(examples.encoder().measurements[0], joules_per_call=0.0123)
    assert (
        "0.012 J per call"
        in by_topic(replace(examples.smallest(), measurements=(one,)))["Throughput and cost"].evidence
    )


def test_a_decoder_is_told_in_tokens() -> None:
    assert by_topic(examples.decoder())["Throughput and cost"].headline == "58.0 new tokens/s"
    assert by_topic(examples.decoder())["Throughput and cost"].state == NOTE
