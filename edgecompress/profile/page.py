"""A profile as a folder to read: one self-contained page, and its plots as files.

The page begins with what a buyer decides by, and ends with what an engineer looks up.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edgecompress.formats.codec import dumps
from edgecompress.profile.decision import answers, megabytes, milliseconds, summary
from edgecompress.profile.drawing import (
    LIGHT,
    MARKS,
    css_variables,
    png_file,
    require_matplotlib,
    svg_file,
    svg_in_page,
)
from edgecompress.profile.host import describe_noise
from edgecompress.profile.layers import last_operators, most_worth, moved_bytes
from edgecompress.profile.peaks import memory_rate, read_rate
from edgecompress.profile.plots import plots
from edgecompress.profile.statistics import remarks_in_common
from edgecompress.types.profile import LatencyBudget, Measurement, OperatorProfile, Peaks, Percentiles, Profile
from edgecompress.types.workload import CALL

PAGE, PLOTS = "report.html", "plots"


@dataclass(frozen=True)
class _Table:
    heads: list[str]
    rows: list[list[str]]


def write_report(profile: Profile, folder: Path) -> Path:
    """Write ``report.html`` and ``plots/`` into the folder, each file beside and renamed; returns the page's path.

    Raises HostError without matplotlib.
    """
    require_matplotlib()
    page = render(profile)
    files = _files(profile)
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write(folder / PLOTS / name, content)
    _write(folder / PAGE, page.encode())
    return folder / PAGE


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _files(profile: Profile) -> dict[str, bytes]:
    """The plots in the light colours, as SVG and as PNG."""
    found: dict[str, bytes] = {}
    for plot in plots(profile, LIGHT):
        found |= {f"{plot.name}.svg": svg_file(plot).encode(), f"{plot.name}.png": png_file(plot)}
    return found


def render(profile: Profile) -> str:
    """The page. Names in it come from bundles and hosts, so all text is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = resources.files("edgecompress.profile").joinpath("report.html.jinja").read_text(encoding="utf-8")
    made = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    drawn = [
        {"name": plot.name, "title": plot.title, "caption": plot.caption, "svg": Markup(svg_in_page(plot))}
        for plot in plots(profile, MARKS)
    ]
    calls = [m for m in profile.measurements if m.latency is not None]
    decision = answers(profile)
    state, verdict = summary(decision)
    return made.render(
        p=profile,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        plots=drawn,
        answers=decision,
        state=state,
        verdict=verdict,
        calls=_calls(calls),
        tokens=_tokens([m for m in calls if m.tokens is not None]),
        others=[_other(m) for m in profile.measurements if m.latency is None],
        tried=_tried(profile),
        phases=[_phase(found, peaks) for found, peaks in last_operators(profile)],
        no_operators=next((r for r in profile.remarks if r.startswith("operators")), "--no-operators was given"),
        host=_host(profile),
        remarks=[*remarks_in_common(profile.measurements), *profile.remarks],
        json_link=f"data:application/json;base64,{base64.b64encode(dumps(profile).encode()).decode()}",
    )


def _calls(calls: Sequence[Measurement]) -> _Table:
    names = list(dict.fromkeys(stage.name for m in calls for stage in m.stages))
    energy = ["J a call"] if any(m.joules_per_call is not None for m in calls) else []
    held = ["budget"] if any(m.budget is not None for m in calls) else []
    heads = [
        "shape",
        "threads",
        *held,
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "texts/s",
        "calls",
        "scenario",
        *names,
        *energy,
    ]
    rows = []
    for m in calls:
        assert m.latency is not None
        stages = {stage.name: f"{stage.share:.1%}" for stage in m.stages}
        rows.append(
            [
                m.workload,
                str(m.threads),
                *([_met(m.budget)] if held else []),
                *_percentiles(m.latency),
                f"{m.per_s or 0:.1f}",
                f"{m.latency.calls:,}",
                m.scenario,
                *(stages.get(name, "") for name in names),
                *(["—" if m.joules_per_call is None else f"{m.joules_per_call:.3f}"] if energy else []),
            ]
        )
    return _Table(heads, rows)


def _met(budget: LatencyBudget | None) -> str:
    return "" if budget is None else {None: "too few calls", True: "within", False: "BEYOND"}[budget.met]


def _tried(profile: Profile) -> _Table:
    quality = profile.tried[0].quality if profile.tried else ""
    heads = ["precision", quality, "vs fp32", "ms", "MB", "outcome"]
    rows = [
        [
            row.precision,
            f"{row.value:.4f}",
            "—" if row.speedup is None else f"{row.speedup:.2f}×",
            milliseconds(row.ms),
            "—" if row.model_bytes is None else f"{row.model_bytes / 1e6:.1f}",
            row.verdict or ("chosen" if row.chosen else "not chosen"),
        ]
        for row in profile.tried
    ]
    return _Table(heads, rows)


def _percentiles(found: Percentiles) -> list[str]:
    return [
        milliseconds(found.p50_ms),
        milliseconds(found.p90_ms),
        milliseconds(found.p99_ms),
        milliseconds(found.max_ms),
    ]


def _tokens(generated: Sequence[Measurement]) -> _Table:
    heads = [
        "prompt",
        "threads",
        "new tokens",
        "TTFT p50 ms",
        "p99",
        "TPOT ms",
        "p99 token",
        "prefill tok/s",
        "decode tok/s",
    ]
    rows = []
    for m in generated:
        assert m.tokens is not None
        t = m.tokens
        rows.append(
            [
                m.workload,
                str(m.threads),
                str(t.new_tokens),
                milliseconds(t.ttft.p50_ms),
                milliseconds(t.ttft.p99_ms),
                milliseconds(t.between.mean_ms),
                milliseconds(t.between.p99_ms),
                f"{t.prefill_tokens_per_s:.0f}",
                f"{t.decode_tokens_per_s:.1f}",
            ]
        )
    return _Table(heads, rows)


def _other(m: Measurement) -> str:
    head = f"{m.workload}, {m.threads} threads, {m.scenario}"
    if m.server is None:
        return f"{head}: {m.per_s:.1f} texts/s"
    s = m.server
    parts = [f"{s.asked_per_s:.1f} requests/s arrive", f"{s.done_per_s:.1f} are done"]
    parts.append(f"p50 {milliseconds(s.latency.p50_ms)} ms")
    parts.append("too few for p99" if s.latency.p99_ms is None else f"p99 {milliseconds(s.latency.p99_ms)} ms")
    if s.within_bound is not None:
        parts.append(f"{'within' if s.within_bound else 'BEYOND'} the bound of {s.bound_ms:g} ms")
    return f"{head}: {', '.join(parts)}"


def _phase(found: OperatorProfile, peaks: Peaks) -> dict[str, Any]:
    phase = "" if found.phase == CALL else f", {found.phase}"
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} G/s" for dtype, rate in sorted(peaks.ops_per_s.items()))
    roofs = {"memory": "memory", "compute": "arithmetic"}
    moved = moved_bytes(found)
    operators = sorted(found.operators, key=lambda o: -o.ms)
    suffix = "" if found.phase == CALL else f"-{found.phase}"
    return {
        "title": f"{found.workload}, {found.threads} threads{phase}",
        "plots": [f"layers{suffix}", f"roofline{suffix}"],
        "summary": f"The nodes take {found.nodes_ms:.3f} ms, timed one by one; the call takes {found.call_ms:.3f} ms "
        f"without these timers. Measured peaks with {found.threads} threads: {rates} in matrix products; "
        f"{memory_rate(peaks) / 1e9:.1f} GB/s reading memory; {read_rate(peaks, moved) / 1e9:.1f} GB/s rereading "
        f"{megabytes(moved)}, which is what one call moves.",
        "worth": [
            [each.what, str(each.nodes), f"{each.ms:.3f}", f"{each.roof_ms:.3f}", roofs[each.bound]]
            for each in most_worth(found)
        ],
        "operators": [
            [
                o.name,
                o.module or "—",
                o.op,
                f"{o.ms:.4f}",
                f"{o.share:.1%}",
                f"{o.ops / 1000000000.0:.3f}",
                f"{o.bytes / 1000000.0:.3f}",
                o.computes,
                roofs[o.bound],
                f"{o.of_roof:.0%}",
            ]
            for o in operators
        ],
    }


def _host(profile: Profile) -> list[list[str]]:
    host, noise = profile.host, profile.noise
    unknown = "not reported"
    vectors = [name for name in host.isa if name.startswith(("avx", "amx", "asimd", "sve", "fma"))]
    said = {
        "CPU": f"{host.cpu}, {host.cores} cores, {host.arch}",
        "instruction sets": ", ".join(vectors) or unknown,
        "GPUs": ", ".join(host.gpus) or "none",
        "memory": unknown if host.memory_bytes is None else megabytes(host.memory_bytes),
        "virtual machine": "yes" if host.virtual_machine else "no",
        "container's limit": "none" if host.cpu_limit is None else f"{host.cpu_limit:g} cores",
        "load before the run": unknown if host.load_average_1min is None else f"{host.load_average_1min:g}",
        "noise": f"{describe_noise(noise)}; its median is {noise.loop_ms} ms",
        "clock": ", ".join(f"{mhz:.0f} MHz" for mhz in host.clock_mhz) or unknown,
        "governor": host.governor or unknown,
        "power mode": host.power_mode or unknown,
        "system": f"{host.system} {host.kernel}, Python {host.python}",
        "versions": ", ".join(f"{name} {version}" for name, version in host.versions.items()),
        "bundle's manifest": f"sha256 {profile.identity}",
    }
    return [[name, value] for name, value in said.items()]
