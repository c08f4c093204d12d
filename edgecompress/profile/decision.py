"""The top of a report: whether the bundle is fit to ship on this device, one answer a question, each with its evidence.

An answer is "yes", "no", "open" (nothing says so yet) or "note" (a figure that only the reader can judge).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgecompress.profile.host import describe_noise, resolution
from edgecompress.types.precision import FP32
from edgecompress.types.profile import Measurement, Profile, Tried

YES, NO, OPEN, NOTE = "yes", "no", "open", "note"
_BUSY = 0.5  # of the cores: a load average above it is other work
_WIDE = 1.5  # p90 over p50 of equal calls: above it something else took the cores
_SHAPE = re.compile(r"\d+x\d+$")  # a trace's calls differ by themselves


@dataclass(frozen=True, kw_only=True)
class Answer:
    topic: str  # "Latency"
    state: str  # one of the above
    headline: str  # "8.63 ms at p90"
    evidence: str  # sentences


def answers(profile: Profile) -> list[Answer]:
    """In the order in which a buyer asks."""
    calls = [m for m in profile.measurements if m.latency is not None]
    return [
        *_latency(profile, calls),
        _quality(profile),
        *_saving(profile),
        *_cost(calls),
        _memory(profile),
        *_start(profile),
        *_terms(profile),
        _trust(profile),
    ]


def summary(found: Sequence[Answer]) -> tuple[str, str]:
    """A state and a sentence for all of them together."""
    wrong = [each.topic.lower() for each in found if each.state == NO]
    unknown = [each.topic.lower() for each in found if each.state == OPEN]
    rest = f" Still open: {', '.join(unknown)}." if unknown else ""
    if wrong:
        return NO, f"Not ready: {', '.join(wrong)}.{rest}"
    if unknown:
        return OPEN, f"Nothing measured rules it out.{rest}"
    return YES, "Every check passes."


def main_call(calls: Sequence[Measurement]) -> Measurement:
    """The call that summarizes a profile: its last shape, with the most threads."""
    threads = max(m.threads for m in calls)
    return [m for m in calls if m.threads == threads][-1]


def milliseconds(value: float | None) -> str:
    """Three digits or so: "8.63"; a dash for what there were too few calls for."""
    return "—" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def case(m: Measurement) -> str:
    return f"{m.workload}, {m.threads} thread{'s' * (m.threads != 1)}"


def _latency(profile: Profile, calls: Sequence[Measurement]) -> Iterator[Answer]:
    held = [m for m in calls if m.budget is not None]
    if held:
        yield _held(held)
    elif calls:
        m = main_call(calls)
        assert m.latency is not None
        tail = next(
            (f"{milliseconds(ms)} ms at {name}" for name, ms in (("p99", m.latency.p99_ms), ("p90", m.latency.p90_ms))
             if ms is not None),
            f"{milliseconds(m.latency.max_ms)} ms at most",
        )  # fmt: skip
        yield Answer(
            topic="Latency",
            state=OPEN,
            headline=f"{milliseconds(m.latency.p50_ms)} ms median",
            evidence=f"{case(m)}; {tail}. No budget was given: profile with --bound-ms to check one.",
        )
    for m in profile.measurements:
        if m.server is None:
            continue
        s = m.server
        bound = "" if s.bound_ms is None else f", bound {s.bound_ms:g} ms"
        yield Answer(
            topic="Latency under load",
            state={None: NOTE, True: YES, False: NO}[s.within_bound],
            headline=f"{milliseconds(s.latency.p99_ms)} ms at p99{bound}",
            evidence=f"{case(m)}, {s.asked_per_s:.1f} requests/s at random moments, {s.done_per_s:.1f}/s done.",
        )


def _held(held: Sequence[Measurement]) -> Answer:
    """Calls that were held against a budget: the slowest one decides."""
    budgets = [(m, m.budget) for m in held if m.budget is not None]
    beyond = [(m, b) for m, b in budgets if b.met is False]
    unknown = [m for m, b in budgets if b.met is None]
    bound, percentile = budgets[0][1].bound_ms, f"p{budgets[0][1].percentile:g}"
    known = [(m, b.value_ms) for m, b in (beyond or budgets) if b.value_ms is not None]
    if not known:
        return Answer(
            topic="Latency",
            state=OPEN,
            headline=f"bound {bound:g} ms at {percentile}",
            evidence=f"Too few calls for {percentile}: give a longer --duration or a lower --percentile.",
        )
    slowest, ms = max(known, key=lambda found: found[1])
    evidence = f"Slowest of {len(budgets)} cases: {case(slowest)}. " if len(budgets) > 1 else f"{case(slowest)}. "
    if beyond:
        evidence += f"Beyond the bound: {'; '.join(case(m) for m, _ in beyond)}. "
    if unknown:
        evidence += f"Too few calls for {percentile}: {'; '.join(map(case, unknown))}. "
    if not beyond and not unknown:
        evidence += "All are within the bound." if len(budgets) > 1 else "It is within the bound."
    return Answer(
        topic="Latency",
        state=NO if beyond else OPEN if unknown else YES,
        headline=f"{milliseconds(ms)} ms at {percentile}, bound {bound:g} ms",
        evidence=evidence.rstrip(),
    )


def _quality(profile: Profile) -> Answer:
    if not profile.verified:
        return Answer(
            topic="Quality",
            state=NO,
            headline="never verified",
            evidence="The export did not compare this bundle with its reference: its speed says nothing about its "
            "answers.",
        )
    first, _, others = profile.fidelity.partition(", ")
    return Answer(
        topic="Quality",
        state=YES,
        headline=first,
        evidence=f"{others[:1].upper()}{others[1:]}, against the reference. It met the quality budget of its export.",
    )


def _saving(profile: Profile) -> Iterator[Answer]:
    chosen, reference = chosen_and_reference(profile.tried)
    if chosen is None or reference is None or chosen is reference:
        return
    smaller = ""
    if chosen.model_bytes and reference.model_bytes:
        smaller = f", {reference.model_bytes / chosen.model_bytes:.1f}× smaller"
    speedup = chosen.speedup or reference.ms / chosen.ms
    size = f"{megabytes(profile.bundle_bytes)} on disk. " if profile.bundle_bytes else ""
    yield Answer(
        topic="Gain over fp32",
        state=NOTE,
        headline=f"{speedup:.2f}× as fast{smaller}",
        evidence=f"{size}{chosen.precision} was chosen out of {len(profile.tried)} precisions; measured on the machine "
        "of the export.",
    )


def chosen_and_reference(tried: Sequence[Tried]) -> tuple[Tried | None, Tried | None]:
    """The precision that was chosen, and fp32."""
    chosen = next((row for row in tried if row.chosen), None)
    return chosen, next((row for row in tried if row.precision == FP32), None)


def _cost(calls: Sequence[Measurement]) -> Iterator[Answer]:
    if not calls:
        return
    m = main_call(calls)
    assert m.latency is not None
    busy_ms = m.latency.mean_ms * m.threads
    energy = "Energy is not measurable here." if m.joules_per_call is None else f"{m.joules_per_call:.3f} J per call."
    if m.tokens is not None:
        headline = f"{m.tokens.decode_tokens_per_s:,.1f} new tokens/s"
    else:
        headline = f"{3600 * (m.per_s or 0):,.0f} texts/h"
    yield Answer(
        topic="Throughput and cost",
        state=NOTE,
        headline=headline,
        evidence=f"{case(m)}, calls in sequence: at most {milliseconds(busy_ms)} ms of core time per call. {energy}",
    )


def _memory(profile: Profile) -> Answer:
    peak, installed = profile.peak_rss_bytes, profile.host.memory_bytes
    gpu = "" if profile.device_bytes is None else f" {megabytes(profile.device_bytes)} of the GPU's memory."
    if peak is None:
        return Answer(
            topic="Memory",
            state=OPEN,
            headline="not measured",
            evidence=f"Profile without --no-cold-start to measure the peak in a fresh process.{gpu}",
        )
    share = "" if not installed else f", {peak / installed:.1%} of the {megabytes(installed)} of this machine"
    return Answer(
        topic="Memory",
        state=NOTE,
        headline=f"{megabytes(peak)} at its peak",
        evidence=f"In a fresh process, until its first result{share}.{gpu}",
    )


def _start(profile: Profile) -> Iterator[Answer]:
    cold = profile.cold_start
    if cold is not None:
        yield Answer(
            topic="Start",
            state=NOTE,
            headline=f"{cold.whole_ms:,.0f} ms to the first result",
            evidence=f"Import {cold.import_ms:.0f} ms, load {cold.load_ms:.0f} ms, first call {cold.first_ms:.1f} ms; "
            f"median of {cold.processes} fresh processes, with the files in the system's cache.",
        )


def _terms(profile: Profile) -> Iterator[Answer]:
    if profile.terms:
        yield Answer(
            topic="Terms of use",
            state=OPEN if profile.terms_open else NOTE,
            headline="not settled" if profile.terms_open else profile.terms.partition(" (")[0],
            evidence=f"The bundle's lineage says: {profile.terms}.",
        )


def _trust(profile: Profile) -> Answer:
    host, noise = profile.host, profile.noise
    doubts = []
    if noise.noisy:
        doubts.append(f"The host was {describe_noise(noise)}: {resolution(noise)}.")
    if host.load_average_1min is not None and host.load_average_1min > _BUSY * host.cores:
        doubts.append(f"Other work ran: a load of {host.load_average_1min:g} on {host.cores} cores before it began.")
    spreads = [
        (m.latency.p90_ms / m.latency.p50_ms, m)
        for m in profile.measurements
        if m.latency is not None and m.latency.p50_ms and m.latency.p90_ms and _SHAPE.match(m.workload)
    ]
    if spreads and (widest := max(spreads, key=lambda found: found[0]))[0] > _WIDE:
        doubts.append(f"Equal calls vary: p90 is {widest[0]:.1f} times p50 ({case(widest[1])}).")
    if host.virtual_machine:
        doubts.append("It is a virtual machine.")
    sure = f"The host was {describe_noise(noise)}."
    return Answer(
        topic="Measurement conditions",
        state=OPEN if doubts else YES,
        headline=host.cpu,
        evidence=" ".join(doubts or [sure])
        + " These figures hold for this device: measure another with --on or --fleet.",
    )
