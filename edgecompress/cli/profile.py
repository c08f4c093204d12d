"""``edgecompress profile``."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecompress.cli import devices
from edgecompress.errors import HostError, OutputError, UsageError
from edgecompress.profile.statistics import remarks_in_common
from edgecompress.terminal import add_json_flag, emit_json, note, progress, red, table, write_json
from edgecompress.types.profile import Measurement, Percentiles, Profile

REPORT = "profile.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help=f"write report.html, its plots and {REPORT} to this folder"
    )
    parser.add_argument("--shapes", help="texts x tokens, or a trace of requests: 1x16,8x128,trace:requests.jsonl")
    parser.add_argument("--threads", help="thread counts to measure: 1,2,4")
    parser.add_argument(
        "--duration", type=float, metavar="S", help="seconds per measurement (default: enough calls for --percentile)"
    )
    parser.add_argument(
        "--percentile", type=float, default=99, help="measure until there are enough calls for this percentile (99)"
    )
    parser.add_argument(
        "--scenario",
        default="single-stream",
        help="single-stream, offline, server; several with commas (single-stream)",
    )
    parser.add_argument("--per-second", type=float, metavar="N", help="server: requests per second, at random times")
    parser.add_argument(
        "--bound-ms",
        type=float,
        metavar="MS",
        help="latency bound of a call at --percentile; server: of its p99, which finds the rate without --per-second",
    )
    parser.add_argument("--new-tokens", type=int, default=32, help="decoders: tokens to generate per text (32)")
    parser.add_argument("--device", type=int, metavar="N", help="number of the GPU, if there are several")
    parser.add_argument("--no-cold-start", action="store_true", help="do not measure the start of a fresh process")
    parser.add_argument("--no-operators", action="store_true", help="do not time the nodes of the graph")
    parser.add_argument("--allow-mismatch", action="store_true", help="profile a bundle that was made for another CPU")
    devices.add_arguments(parser)
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.profile.page import write_report
    from edgecompress.profile.run import Asked, profile

    devices.check_flags(options)
    asked = Asked(
        shapes=options.shapes,
        threads=_threads(options.threads),
        duration_s=options.duration,
        percentile=options.percentile,
        scenarios=tuple(name.strip() for name in options.scenario.split(",")),
        per_s=options.per_second,
        bound_ms=options.bound_ms,
        new_tokens=options.new_tokens,
        device=options.device,
        cold=not options.no_cold_start,
        operators=not options.no_operators,
        allow_mismatch=options.allow_mismatch,
    )
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise OutputError(f"{options.output} is a file", hint="Give a folder.")
    if options.fleet is not None:
        return devices.run_fleet(options, asked)
    with progress() as show:
        there = options.on is not None
        found = devices.run_on_device(options, asked, show) if there else profile(options.bundle, asked, show)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_json(found, options.output / REPORT)
        try:
            note(f"wrote {write_report(found, options.output)}")
        except HostError as error:
            note(f"report.html was not written: {error.message} ({error.hint})")
    if options.json:
        emit_json(found)
    else:
        print(describe(found))
    return 0


def _threads(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--threads takes whole numbers above 0, not '{text}'", hint="Give --threads 1,2,4.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def describe(profile: Profile) -> str:
    """For a terminal."""
    from edgecompress.cli.operator_lines import describe_operators
    from edgecompress.profile.host import describe_noise

    size = f"{profile.bundle_bytes / 1e6:.1f} MB"
    lines = [
        f"{profile.bundle}: {profile.name}, {profile.task}, {profile.precision} for {profile.target}, {size}",
        f"{profile.host.cpu}, {profile.host.cores} cores; {describe_noise(profile.noise)}",
        "",
    ]
    calls = [m for m in profile.measurements if m.latency is not None]
    if calls:
        lines += [_calls(calls), ""]
    generated = [m for m in calls if m.tokens is not None]
    if generated:
        lines += [_tokens(generated), ""]
    others = [m for m in profile.measurements if m.latency is None]
    for m in others:
        lines.append(_other(m))
    if (cold := profile.cold_start) is not None:
        parts = f"import {cold.import_ms:.0f}, load {cold.load_ms:.0f}, first {cold.first_ms:.1f}"
        lines.append(
            f"cold start  {cold.whole_ms:.0f} ms in a fresh process ({parts}); peak memory "
            f"{cold.peak_rss_bytes / 1e6:.0f} MB"
        )
    if profile.device_bytes is not None:
        lines.append(f"GPU memory  {profile.device_bytes / 1e6:.0f} MB during the run, other processes included")
    joules = {m.joules_per_call for m in calls}
    if calls and joules == {None}:
        lines.append("energy      not measurable here")
    lines += remarks_in_common(profile.measurements)
    lines += describe_operators(profile)
    notes = [f"note: {remark}" for remark in profile.remarks]
    lines += [red(text) if "never verified" in text else text for text in notes]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _row(p: Percentiles) -> list[str]:
    return [_ms(p.p50_ms), _ms(p.p90_ms), _ms(p.p99_ms), _ms(p.max_ms)]


def _calls(measurements: list[Measurement]) -> str:
    names = [stage.name for stage in measurements[0].stages]
    rows = []
    for m in measurements:
        assert m.latency is not None
        stages = {stage.name: f"{stage.share:.1%}" for stage in m.stages}
        joules = [] if m.joules_per_call is None else [f"{m.joules_per_call:.3f}"]
        shares = [stages.get(name, "") for name in names]
        rows.append([m.workload, str(m.threads), m.scenario, *_row(m.latency), f"{m.per_s or 0:.1f}", *shares, *joules])
    energy = ["J a call"] if all(m.joules_per_call is not None for m in measurements) else []
    heads = ["shape", "threads", "scenario", "p50 ms", "p90 ms", "p99 ms", "max ms", "texts/s", *names, *energy]
    return table(heads, [row[: len(heads)] for row in rows])


def _tokens(measurements: list[Measurement]) -> str:
    rows = []
    for m in measurements:
        assert m.tokens is not None
        t = m.tokens
        rows.append(
            [
                *(m.workload, str(m.threads), _ms(t.ttft.p50_ms), _ms(t.ttft.p99_ms)),
                *(_ms(t.between.mean_ms), _ms(t.between.p99_ms)),
                *(f"{t.prefill_tokens_per_s:.0f}", f"{t.decode_tokens_per_s:.1f}"),
            ]
        )
    heads = ["prompt", "threads", "TTFT ms", "p99", "TPOT ms", "p99 token", "prefill tok/s", "decode tok/s"]
    return table(heads, rows)


def _other(m: Measurement) -> str:
    head = f"{m.workload}, {m.threads} threads, {m.scenario}:"
    if m.server is None:
        return f"{head} {m.per_s:.1f} texts/s"
    s = m.server
    parts = [f"{s.asked_per_s:.1f} requests/s asked", f"{s.done_per_s:.1f} done", f"p50 {_ms(s.latency.p50_ms)} ms"]
    parts.append("too few for p99" if s.latency.p99_ms is None else f"p99 {_ms(s.latency.p99_ms)} ms")
    if s.within_bound is not None:
        parts.append(f"{'within' if s.within_bound else 'BEYOND'} the bound of {s.bound_ms:g} ms")
    return f"{head} {', '.join(parts)}"
