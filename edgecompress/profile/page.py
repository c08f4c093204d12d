"""A profile as a folder to look at: one page that needs nothing else, the plots as files, and the profile as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edgecompress.formats.codec import dumps
from edgecompress.profile.drawing import (
    LIGHT,
    MARKS,
    css_variables,
    png_file,
    require_matplotlib,
    svg_file,
    svg_in_page,
)
from edgecompress.profile.host import describe_noise, resolution
from edgecompress.profile.layers import last_operators, most_worth, moved_bytes
from edgecompress.profile.peaks import memory_rate, read_rate
from edgecompress.profile.plots import plots
from edgecompress.profile.statistics import remarks_in_common
from edgecompress.types.profile import Measurement, OperatorProfile, Peaks, Percentiles, Profile
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
    files = _files(profile)
    page = render(profile, files)
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


def _link(kind: str, content: bytes) -> str:
    """To the content itself: a page that is sent to somebody has it all."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(profile: Profile, files: Mapping[str, bytes]) -> str:
    """The page. Names in it come from bundles and hosts, so all text is escaped. ``files``: the plots, to be saved."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = resources.files("edgecompress.profile").joinpath("report.html.jinja").read_text(encoding="utf-8")
    made = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    drawn = [
        {
            "name": plot.name,
            "title": plot.title,
            "caption": plot.caption,
            "svg": Markup(svg_in_page(plot)),
            "svg_link": _link("image/svg+xml", files[f"{plot.name}.svg"]),
            "png_link": _link("image/png", files[f"{plot.name}.png"]),
        }
        for plot in plots(profile, MARKS)
    ]
    calls = [m for m in profile.measurements if m.latency is not None]
    return made.render(
        p=profile,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        plots=drawn,
        megabytes=_megabytes,
        noise=f"The host was {describe_noise(profile.noise)}",
        resolution=resolution(profile.noise),
        cards=_cards(profile, calls),
        calls=_calls(calls),
        tokens=_tokens([m for m in calls if m.tokens is not None]),
        others=[_other(m) for m in profile.measurements if m.latency is None],
        cold=_cold(profile),
        energy=_energy(calls),
        phases=[_phase(found, peaks) for found, peaks in last_operators(profile)],
        no_operators=next((r for r in profile.remarks if r.startswith("operators")), "it was asked not to"),
        host=_host(profile),
        remarks=[
            *remarks_in_common(profile.measurements),
            *profile.remarks,
        ],
        json=Markup(_in_script(profile)),
        json_link=_link("application/json", dumps(profile).encode()),
    )


def _in_script(profile: Profile) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(json.loads(dumps(profile)), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cards(profile: Profile, calls: Sequence[Measurement]) -> list[tuple[str, str]]:
    found = []
    if calls:
        m = calls[-1]
        assert m.latency is not None
        found.append((f"median of {m.workload}, {m.threads} threads", f"{_ms(m.latency.p50_ms)} ms"))
        if m.latency.p99_ms is not None:
            found.append(("its p99", f"{_ms(m.latency.p99_ms)} ms"))
        if m.tokens is not None:
            found.append(("tokens a second, decoding", f"{m.tokens.decode_tokens_per_s:.1f}"))
        elif m.per_s is not None:
            found.append(("texts a second", f"{m.per_s:.1f}"))
    if profile.cold_start is not None:
        found.append(("from a fresh process to the first result", f"{profile.cold_start.whole_ms:.0f} ms"))
    if profile.peak_rss_bytes is not None:
        found.append(("peak memory", _megabytes(profile.peak_rss_bytes)))
    if profile.device_bytes is not None:
        found.append(("of the GPU's memory", _megabytes(profile.device_bytes)))
    return found


def _calls(calls: Sequence[Measurement]) -> _Table:
    names = list(dict.fromkeys(stage.name for m in calls for stage in m.stages))
    heads = ["shape", "threads", "scenario", "calls", "p50 ms", "p90 ms", "p99 ms", "max ms", "texts/s", *names]
    rows = []
    for m in calls:
        assert m.latency is not None
        stages = {stage.name: f"{stage.share:.1%}" for stage in m.stages}
        rows.append(
            [
                m.workload,
                str(m.threads),
                m.scenario,
                f"{m.latency.calls:,}",
                *_percentiles(m.latency),
                f"{m.per_s or 0:.1f}",
                *(stages.get(name, "") for name in names),
            ]
        )
    return _Table(heads, rows)


def _percentiles(found: Percentiles) -> list[str]:
    return [_ms(found.p50_ms), _ms(found.p90_ms), _ms(found.p99_ms), _ms(found.max_ms)]


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
                _ms(t.ttft.p50_ms),
                _ms(t.ttft.p99_ms),
                _ms(t.between.mean_ms),
                _ms(t.between.p99_ms),
                f"{t.prefill_tokens_per_s:.0f}",
                f"{t.decode_tokens_per_s:.1f}",
            ]
        )
    return _Table(heads, rows)


def _other(m: Measurement) -> str:
    if m.server is None:
        return f"{m.workload}, {m.threads} threads, {m.scenario}: {m.per_s:.1f} texts a second"
    s = m.server
    bound = ""
    if s.within_bound is not None:
        bound = f", {'within' if s.within_bound else 'BEYOND'} the bound of {s.bound_ms:g} ms"
    return (
        f"{m.workload}, {m.threads} threads, {m.scenario}: {s.asked_per_s:.1f} requests a second asked, "
        f"{s.done_per_s:.1f} done, p50 {_ms(s.latency.p50_ms)} ms, p99 {_ms(s.latency.p99_ms)} ms{bound}"
    )


def _cold(profile: Profile) -> str:
    cold = profile.cold_start
    if cold is None:
        return "Cold start was not measured."
    return (
        f"Cold start: {cold.whole_ms:.0f} ms from the start of a fresh process to its first result (import "
        f"{cold.import_ms:.0f}, load {cold.load_ms:.0f}, first call {cold.first_ms:.1f}; median of {cold.processes}), "
        f"peak memory {_megabytes(cold.peak_rss_bytes)}."
    )


def _energy(calls: Sequence[Measurement]) -> str:
    told = [f"{m.workload} {m.joules_per_call:.3f} J a call" for m in calls if m.joules_per_call is not None]
    return "; ".join(told) if told else "not measurable here"


def _phase(found: OperatorProfile, peaks: Peaks) -> dict[str, Any]:
    phase = "" if found.phase == CALL else f", {found.phase}"
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} G/s" for dtype, rate in sorted(peaks.ops_per_s.items()))
    roofs = {"memory": "reading", "compute": "products"}
    moved = moved_bytes(found)
    operators = sorted(found.operators, key=lambda o: -o.ms)
    return {
        "title": f"{found.workload}, {found.threads} threads{phase}",
        "summary": f"The nodes take {found.nodes_ms:.3f} ms, timed one by one; the call takes {found.call_ms:.3f} ms "
        f"when nothing in it is timed. This machine's roof with {found.threads} threads: products in {rates}; reads "
        f"{memory_rate(peaks) / 1e9:.1f} GB/s of memory, and {read_rate(peaks, moved) / 1e9:.1f} GB/s of "
        f"{_megabytes(moved)}, as much as a call moves, again and again.",
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
    said = {
        "CPU": f"{host.cpu}, {host.cores} cores, {host.arch}",
        "its instruction sets": ", ".join(
            name for name in host.isa if name.startswith(("avx", "amx", "asimd", "sve", "fma"))
        )
        or "not known",
        "GPUs": ", ".join(host.gpus) or "none",
        "clock now": ", ".join(f"{mhz:.0f} MHz" for mhz in host.clock_mhz) or "the system does not say",
        "governor": host.governor or "the system does not say",
        "power mode": host.power_mode or "the system does not say",
        "memory": "not known" if host.memory_bytes is None else _megabytes(host.memory_bytes),
        "cores that a container may use": "no limit" if host.cpu_limit is None else f"{host.cpu_limit:g}",
        "virtual machine": "yes" if host.virtual_machine else "no",
        "load before": "not known" if host.load_average_1min is None else f"{host.load_average_1min:g}",
        "loop of known work": f"{noise.loop_ms} ms, varied by {noise.spread:.1%}, medians by "
        f"{noise.slowest_over_fastest - 1:.1%}",
        "system": f"{host.system} {host.kernel}, Python {host.python}",
        "versions": ", ".join(f"{name} {version}" for name, version in host.versions.items()),
        "bundle's identity": profile.identity,
    }
    return [[name, value] for name, value in said.items()]


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
