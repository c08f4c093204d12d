"""``edgecompress profile``: every workload, thread count and scenario in sequence, and the host that ran them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgecompress.backends import find_backend
from edgecompress.errors import UsageError
from edgecompress.formats.manifest import file_sha256, open_bundle, read_lineage, read_measurements, read_report
from edgecompress.kinds import find_kind
from edgecompress.kinds.base import Kind
from edgecompress.lineage.policy import objection
from edgecompress.loading import open_models
from edgecompress.profile.cold import cold_start
from edgecompress.profile.energy import EnergyMeter
from edgecompress.profile.host import Calibration, describe_host, resolution
from edgecompress.profile.scenarios import most_served, offline, serve
from edgecompress.profile.statistics import Times, calls_for, drift, percentiles, quantiles
from edgecompress.profile.timing import WallClock, measure, missing_percentiles, warm_up
from edgecompress.profile.workload import workloads_of
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.session import check_host
from edgecompress.runtime.subject import Prepared, Subject
from edgecompress.types.profile import (
    LatencyBudget,
    Measurement,
    OperatorProfile,
    Peaks,
    Profile,
    Stage,
    TokenTimes,
    Tried,
)
from edgecompress.types.report import Fidelity
from edgecompress.types.workload import DEFAULT_NEW_TOKENS, Workload
from edgecompress.version import __version__

SCENARIOS = ("single-stream", "offline", "server")
_OFFLINE_ITEMS = 256

Show = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings of a profile; None takes the bundle's default."""

    shapes: str | None = None
    threads: tuple[int, ...] = ()
    duration_s: float | None = None
    percentile: float = 99
    scenarios: tuple[str, ...] = ("single-stream",)
    per_s: float | None = None  # of the server scenario; None: the highest rate within the bound
    bound_ms: float | None = None  # of a call, at ``percentile``; in the server scenario of the p99
    new_tokens: int = DEFAULT_NEW_TOKENS
    device: int | None = None
    cold: bool = True
    operators: bool = True
    allow_mismatch: bool = False


def profile(bundle: Path, asked: Asked, show: Show = lambda _: None) -> Profile:
    """Measure. Raises UsageError for settings that :func:`check` refuses, and what :func:`edgecompress.load` raises."""
    check(asked)
    manifest, folder = open_bundle(bundle)
    kind = find_kind(manifest.kind)
    workloads = workloads_of(manifest, asked.shapes)
    if not asked.allow_mismatch:
        check_host(manifest)
    host = describe_host()  # before our own work adds to its load
    clock, calibration = WallClock(), Calibration()
    calibration.take()
    measurements: list[Measurement] = []
    operators: list[OperatorProfile] = []
    peaks: list[Peaks] = []
    remarks: list[str] = []
    device_bytes = None
    for wanted in asked.threads or (None,):
        source = open_models(manifest, folder, threads=wanted, device=asked.device)
        device = source.gpu()
        free = 0 if device is None else device.free_bytes()
        subject = kind.profile.open_subject(source)
        of_these: list[_Measured] = []
        try:
            for workload in workloads:
                show(f"{workload.name}, {subject.threads} threads")
                of_these += _measure_all(subject, workload, asked, gpu=device is not None)
                calibration.take()
            if device is not None:
                device_bytes = max(device_bytes or 0, free - device.free_bytes())
        finally:
            subject.close()
        measurements += [each.measurement for each in of_these]
        if asked.operators:
            show(f"operators, {source.threads} threads")
            peaks += _operators(source, of_these, operators, remarks)
            calibration.take()
    cold = None
    if asked.cold:
        show("cold start")
        cold = cold_start(manifest, folder, asked.threads[0] if asked.threads else source.threads, asked.device)
    calibration.take()
    noise = calibration.noise()
    if noise.noisy:
        remarks.append(f"the host was noisy: {resolution(noise)}")
    if jump := clock.jump_s():
        remarks.append(f"the system clock was set by {jump:+g} s during the run; the durations do not depend on it")
    fidelity = read_report(folder).fidelity
    verified = fidelity.samples > 0
    if not verified:
        remarks.append("this bundle's fidelity was never verified: its speed says nothing about its answers")
    terms, terms_open = _terms(folder)
    return Profile(
        tool_version=__version__,
        bundle=bundle.name,
        identity=file_sha256(folder / "manifest.json"),
        name=manifest.name,
        task=manifest.task,
        precision=manifest.precision,
        target=manifest.target.name,
        bundle_bytes=manifest.bytes,
        verified=verified,
        host=host,
        noise=noise,
        measurements=tuple(measurements),
        cold_start=cold,
        peak_rss_bytes=None if cold is None else cold.peak_rss_bytes,
        device_bytes=device_bytes,
        fidelity=_in_words(kind, fidelity),
        terms=terms,
        terms_open=terms_open,
        tried=_tried(kind, folder),
        peaks=tuple(peaks),
        operators=tuple(operators),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def check(asked: Asked) -> None:
    """Raises UsageError for settings that are out of range or contradict each other."""
    unknown = [name for name in asked.scenarios if name not in SCENARIOS]
    if unknown:
        raise UsageError(f"unknown scenario '{unknown[0]}'", hint=f"Scenarios: {', '.join(SCENARIOS)}.")
    if asked.duration_s is not None and asked.duration_s <= 0:
        raise UsageError(f"the duration must be above 0, not {asked.duration_s:g} s", hint="Give --duration 10.")
    if not 50 <= asked.percentile < 100:
        raise UsageError(
            f"the percentile must be from 50 to below 100, not {asked.percentile:g}", hint="Give --percentile 99."
        )
    if asked.new_tokens < 2:
        raise UsageError(f"new tokens must be at least 2, not {asked.new_tokens}", hint="Give --new-tokens 32.")
    server = "server" in asked.scenarios
    if server and asked.per_s is None and asked.bound_ms is None:
        raise UsageError("the server scenario needs a rate or a latency bound", hint="Give --per-second or --bound-ms.")
    if not server and asked.per_s is not None:
        raise UsageError("--per-second is for the server scenario", hint="Add --scenario server.")
    if asked.per_s is not None and asked.per_s <= 0:
        raise UsageError(f"the rate must be above 0, not {asked.per_s:g}", hint="Give --per-second 10.")
    if asked.bound_ms is not None and not asked.bound_ms > 0:
        raise UsageError(f"the latency bound must be above 0, not {asked.bound_ms:g} ms", hint="Give --bound-ms 20.")


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """``phases_ms``: the time of each phase of a call, where calls were timed one by one."""

    workload: Workload
    measurement: Measurement
    phases_ms: Mapping[str, float] = field(default_factory=dict)


def _measure_all(subject: Subject, workload: Workload, asked: Asked, *, gpu: bool) -> list[_Measured]:
    found = []
    prepared = subject.prepare(workload, asked.new_tokens)
    usual = warm_up(prepared.call)
    if "single-stream" in asked.scenarios:
        found.append(_calls_in_a_row(subject, workload, prepared, usual, asked, gpu=gpu))
    if "offline" in asked.scenarios:
        per_s, seconds = offline(subject.offline(workload, _OFFLINE_ITEMS), _OFFLINE_ITEMS, asked.duration_s)
        measurement = Measurement(
            workload=workload.name,
            threads=subject.threads,
            scenario="offline",
            seconds=round(seconds, 3),
            per_s=round(per_s, 2),
        )
        found.append(_Measured(workload=workload, measurement=measurement))
    if "server" in asked.scenarios:
        if asked.per_s is not None:
            server = serve(prepared.call, asked.per_s, asked.duration_s or 5.0, asked.bound_ms)
        else:
            assert asked.bound_ms is not None
            server = most_served(prepared.call, usual, asked.bound_ms, asked.duration_s)
        seconds = server.latency.calls / server.done_per_s
        measurement = Measurement(
            workload=workload.name,
            threads=subject.threads,
            scenario="server",
            seconds=round(seconds, 3),
            per_s=server.done_per_s,
            server=server,
        )
        found.append(_Measured(workload=workload, measurement=measurement))
    return found


def _calls_in_a_row(
    subject: Subject, workload: Workload, prepared: Prepared, usual: float, asked: Asked, *, gpu: bool
) -> _Measured:
    prepared.clear()
    meter = EnergyMeter(gpu=gpu)
    timed = measure(prepared.call, asked.duration_s, needs=asked.percentile, whole_s=usual)
    joules, calls = meter.joules(), len(timed.seconds)
    latency, remarks = percentiles(timed.seconds), []
    if (missing := missing_percentiles(timed.seconds, asked.percentile)) is not None:
        remarks.append(missing)
    moved = drift(timed.seconds, timed.at)
    if moved is not None and moved.degrades_after_s is not None:
        remarks.append(
            f"it became slower for good after {moved.degrades_after_s:g} s: heat, or other work on the machine"
        )
    budget = None
    if asked.bound_ms is not None:
        budget = _budget(timed.seconds, asked.bound_ms, asked.percentile)
        state = {None: "unknown, with too few calls, against", True: "within", False: "BEYOND"}[budget.met]
        remarks.append(f"p{budget.percentile:g} is {state} the bound of {budget.bound_ms:g} ms")
    tokens = None
    if (of_text := prepared.tokens) is not None:
        tokens = TokenTimes(
            new_tokens=of_text.new_tokens,
            ttft=percentiles(np.array(of_text.first)),
            between=percentiles(np.array(of_text.between)),
            prefill_tokens_per_s=round(of_text.prompt_tokens * calls / sum(of_text.prefill), 2),
            decode_tokens_per_s=round((of_text.new_tokens - 1) * prepared.items * calls / sum(of_text.decode), 2),
        )
    times: dict[str, Sequence[float]] = {}
    for name, values in prepared.stages.items():
        times |= prepared.parts[name]() if name in prepared.parts else {name: list(values)}
    if prepared.parts:
        remarks.append("the stages on the device were timed in separate calls, synchronized after each stage")
    stages = _stages(times)
    p50_ms = {stage.name: stage.p50_ms for stage in stages}
    measurement = Measurement(
        workload=workload.name,
        threads=subject.threads,
        scenario="single-stream" if workload.batch == 1 else "multi-stream",
        seconds=round(timed.whole_s, 3),
        latency=latency,
        per_s=round(calls * prepared.items / timed.whole_s, 2),
        stages=stages,
        tokens=tokens,
        drift=moved,
        quantiles_ms=quantiles(timed.seconds),
        budget=budget,
        joules_per_call=None if joules is None else round(joules / calls, 6),
        remarks=tuple(remarks),
    )
    phases_ms = {name: p50_ms[stage] / often for name, (stage, often) in prepared.phases.items() if stage in p50_ms}
    return _Measured(workload=workload, measurement=measurement, phases_ms=phases_ms)


def _budget(seconds: Times, bound_ms: float, percentile: float) -> LatencyBudget:
    """``seconds`` [N] of each call, held against ``bound_ms`` at ``percentile``."""
    if len(seconds) < calls_for(percentile):
        return LatencyBudget(bound_ms=bound_ms, percentile=percentile, value_ms=None, met=None)
    value_ms = round(float(np.percentile(seconds, percentile)) * 1e3, 4)
    return LatencyBudget(bound_ms=bound_ms, percentile=percentile, value_ms=value_ms, met=value_ms <= bound_ms)


def _stages(stages: Mapping[str, Sequence[float]]) -> tuple[Stage, ...]:
    means = {name: float(np.mean(values)) for name, values in stages.items()}
    whole = sum(means.values()) or 1.0
    return tuple(
        Stage(name=name, p50_ms=round(float(np.median(values)) * 1e3, 4), share=round(means[name] / whole, 4))
        for name, values in stages.items()
    )


def _operators(
    source: OpenBundle, measured: list[_Measured], found: list[OperatorProfile], remarks: list[str]
) -> list[Peaks]:
    """Append the nodes' times in workloads of shapes to ``found``, or the reason for their absence to ``remarks``."""
    if any(find_backend(variant.backend).timing is None for variant in source.manifest.variants):
        remarks.append("operators are not measurable here: only ONNX Runtime on a CPU times them")
        return []
    if missing := [name for name in ("onnx", "onnx_ir") if importlib.util.find_spec(name) is None]:
        remarks.append(
            f"operators are not measured: {missing[0]} is not installed (pip install 'edgecompress[profile]')"
        )
        return []
    shapes = [each for each in measured if each.phases_ms and not each.workload.requests]
    if not shapes:
        remarks.append("operators are measured in the single-stream scenario, on shapes: this run has neither")
        return []
    from edgecompress.profile.operators import OperatorTimer

    timer = OperatorTimer(source)
    try:
        for each in shapes:
            timer.run(each.workload, each.phases_ms)
        at_most, new = timer.finish()
        found += new
        return [at_most] if at_most is not None else []
    finally:
        timer.close()


def _in_words(kind: Kind, fidelity: Fidelity) -> str:
    """Every figure that applies, the one that is judged first."""
    found = [f"{figure.title} {figure.value:.4f}" for figure in kind.metric.figures(fidelity)]
    return f"{', '.join(found)}, over {fidelity.samples:,} held-out samples" if found else ""


def _terms(folder: Path) -> tuple[str, bool]:
    """The licence, or what is not known about the terms of use; and whether ``--provenance enforce`` refuses that."""
    if not (folder / "lineage.json").is_file():
        return "", False
    lineage = read_lineage(folder)
    why = objection(lineage)
    if why is not None:
        accepted = lineage.accepted.value
        return (why, True) if accepted is None else (f'{why}; accepted at the export: "{accepted}"', False)
    known = [
        f"{word}{each.value} ({each.said_by}{f', {each.where}' if each.where else ''})"
        for word, each in (("", lineage.licence), ("terms ", lineage.status))
        if each.value is not None
    ]
    return "; ".join(known), False


def _tried(kind: Kind, folder: Path) -> tuple[Tried, ...]:
    measurements, found = read_measurements(folder), []
    for row in measurements.candidates if measurements is not None else ():
        figure = None if row.fidelity is None else next(iter(kind.metric.figures(row.fidelity)), None)
        if figure is None or row.latency_ms is None:
            continue
        level = "" if row.accuracy_level is None else f", accuracy level {row.accuracy_level}"
        found.append(
            Tried(
                precision=row.precision + level,
                quality=figure.title,
                value=figure.value,
                ms=row.latency_ms,
                chosen=row.verdict == "chosen",
                speedup=row.speedup,
                model_bytes=row.model_bytes,
                verdict=row.verdict,
            )
        )
    return tuple(found)
