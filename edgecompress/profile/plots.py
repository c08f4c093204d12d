"""The plots of a profile's calls. A plot without data is not drawn."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from edgecompress.profile.drawing import (
    DASHES,
    Palette,
    Plot,
    drawing,
    in_milliseconds,
    in_sizes,
    legend_below,
    shortened,
    stacked,
)
from edgecompress.profile.graph_plots import layers_plot, pareto_plot, roofline_plot
from edgecompress.profile.layers import last_operators
from edgecompress.types.profile import Measurement, Profile

_SHAPE = re.compile(r"^(\d+)x(\d+)$")
_BINS = 36
_MOST_ROWS, _MOST_STAGES = 6, 16
_MOST_TIMES = 3.0


def plots(profile: Profile, palette: Palette) -> list[Plot]:
    """Every plot that the profile has data for."""
    made = (
        _histograms(profile, palette),
        _lengths(profile, palette),
        _tokens(profile, palette),
        _stages(profile, palette),
        _drift(profile, palette),
        *(layers_plot(found, palette) for found, _ in last_operators(profile)),
        *(roofline_plot(found, peaks, palette) for found, peaks in last_operators(profile)),
        pareto_plot(profile, palette),
    )
    return [plot for plot in made if plot is not None]


def _timed(profile: Profile) -> list[Measurement]:
    return [m for m in profile.measurements if m.latency is not None]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _name(m: Measurement) -> str:
    return f"{shortened(m.workload, 24)}, {_count(m.threads, 'thread')}"


def shape_of(m: Measurement) -> tuple[int, int] | None:
    """Number of texts and tokens per text; None for a trace and for texts of mixed lengths."""
    found = _SHAPE.match(m.workload)
    return (int(found[1]), int(found[2])) if found and int(found[2]) else None


def _known(m: Measurement) -> list[tuple[int, float]]:
    """The percentiles that had enough calls."""
    assert m.latency is not None
    found = ((50, m.latency.p50_ms), (90, m.latency.p90_ms), (99, m.latency.p99_ms))
    return [(percent, value) for percent, value in found if value is not None]


def _histograms(profile: Profile, palette: Palette) -> Plot | None:
    threads = max((m.threads for m in _timed(profile)), default=0)
    all_of_them = [m for m in _timed(profile) if m.threads == threads and len(m.quantiles_ms) == 101]
    shown = all_of_them[:_MOST_ROWS]
    if not shown:
        return None
    with drawing(palette, 0.45 + 0.95 * len(shown), len(shown)) as (figure, axes):
        for m, axis in zip(shown, axes, strict=True):
            quantiles = np.array(m.quantiles_ms)
            low, high = quantiles[0], max(min(quantiles[100], 2.5 * quantiles[90]), quantiles[0] * 1.001)
            edges = np.linspace(low, high, _BINS + 1)
            below = np.interp(edges, quantiles, np.arange(101) / 100)
            axis.stairs(np.diff(below) * 100, edges, fill=True, color=palette.series[0])
            for (percent, value), dash in zip(_known(m), DASHES, strict=False):
                if value <= high:
                    axis.axvline(value, color=palette.ink, linewidth=1, linestyle=dash)
                    axis.annotate(
                        f"p{percent}",
                        (value, 1.0),
                        xycoords=axis.get_xaxis_transform(),
                        xytext=(3, 0),
                        textcoords="offset points",
                        va="top",
                        fontsize=7.5,
                        color=palette.ink,
                    )
            axis.set_title(_name(m), fontsize=8.5)
            if quantiles[100] > high:
                axis.set_title(f"slowest {quantiles[100]:.3g} ms →", fontsize=8, loc="right")
            in_milliseconds(axis, "x", ())
            axis.margins(x=0.01)
            axis.set_ylim(0, axis.get_ylim()[1] * 1.25)
        figure.supylabel("% of calls", fontsize=9, color=palette.ink)
        axes[-1].set_xlabel("ms per call")
    left = len(all_of_them) - len(shown)
    return Plot(
        name="histogram",
        title="Latency distribution",
        caption="Calls by latency, for the largest thread count. Lines mark p50, p90 and p99 where there were enough "
        "calls." + f" {_count(left, 'more workload')} {'are' if left > 1 else 'is'} in the table only." * bool(left),
        figure=figure,
    )


def _lengths(profile: Profile, palette: Palette) -> Plot | None:
    """Against the length of the texts and against their number: a panel each, given two points to join."""
    by_length: dict[tuple[int, int], list[tuple[int, Measurement]]] = defaultdict(list)
    by_batch: dict[tuple[int, int], list[tuple[int, Measurement]]] = defaultdict(list)
    for m in _timed(profile):
        shape = shape_of(m)
        if shape is not None and m.latency is not None and m.latency.p50_ms is not None:
            by_length[shape[0], m.threads].append((shape[1], m))
            by_batch[shape[1], m.threads].append((shape[0], m))
    panels = [
        (lines, thing, label)
        for found, thing, label in (
            (by_length, "text", "tokens per text"),
            (by_batch, "token", "texts per call"),
        )
        if (lines := {key: points for key, points in sorted(found.items()) if len({at for at, _ in points}) > 1})
    ]
    if not panels:
        return None
    threads = sorted({key[1] for lines, _, _ in panels for key in lines})
    p90 = any(m.latency and m.latency.p90_ms for lines, _, _ in panels for found in lines.values() for _, m in found)
    shaded = ", shaded up to p90" if p90 else ""
    with drawing(palette, 0.3 + 2.75 * len(panels), len(panels)) as (figure, axes):
        colour_of: dict[tuple[str, int], str] = {}
        for axis, (lines, thing, label) in zip(axes, panels, strict=True):
            times: list[float] = []
            for (number, count), points in lines.items():
                points.sort(key=lambda point: point[0])
                colour = colour_of.setdefault((thing, number), palette.series[len(colour_of) % len(palette.series)])
                at = [point[0] for point in points]
                latencies = [m.latency for _, m in points if m.latency is not None]
                middle = [each.p50_ms or each.mean_ms for each in latencies]
                high = [each.p90_ms or m for each, m in zip(latencies, middle, strict=True)]
                times += [*middle, *high]
                dash = DASHES[threads.index(count) % len(DASHES)]
                what = f"{_count(number, thing)}, {_count(count, 'thread')}"
                axis.plot(at, middle, color=colour, linestyle=dash, marker="o", markersize=4, label=what)
                axis.fill_between(at, middle, high, color=colour, alpha=0.16, linewidth=0)
            in_sizes(axis, (at for points in lines.values() for at, _ in points))
            in_milliseconds(axis, "y", times)
            if axis.get_yscale() == "linear":
                axis.set_ylim(bottom=0)
            axis.set_xlabel(label)
            axis.set_ylabel("ms per call")
            axis.grid(True)
            axis.legend(loc="upper left")
    return Plot(
        name="lengths",
        title="Latency by length and batch",
        caption=f"Median of a call{shaded}.",
        figure=figure,
    )


def _tokens(profile: Profile, palette: Palette) -> Plot | None:
    lines: dict[tuple[int, int], list[tuple[int, Measurement]]] = defaultdict(list)
    for m in _timed(profile):
        shape = shape_of(m)
        if m.tokens is not None and shape is not None:
            lines[shape[0], m.threads].append((shape[1], m))
    if not lines:
        return None
    threads = sorted({count for _, count in lines})
    batches = sorted({batch for batch, _ in lines})
    with drawing(palette, 4.3, 2) as (figure, axes):
        for (batch, count), found in sorted(lines.items()):
            found.sort(key=lambda point: point[0])
            at = [length for length, _ in found]
            told = [m.tokens for _, m in found if m.tokens is not None]
            colour = palette.series[batches.index(batch) % len(palette.series)]
            dash = DASHES[threads.index(count) % len(DASHES)]
            label = f"{_count(batch, 'text')}, {_count(count, 'thread')}"
            first = [tokens.ttft.p50_ms or tokens.ttft.mean_ms for tokens in told]
            each = [tokens.between.mean_ms for tokens in told]
            for axis, times in zip(axes, (first, each), strict=True):
                axis.plot(at, times, color=colour, linestyle=dash, marker="o", markersize=4, label=label)
        axes[0].set_ylabel("TTFT, ms")
        axes[1].set_ylabel("TPOT, ms")
        axes[1].set_xlabel("tokens in the prompt")
        for axis in axes:
            in_sizes(axis, (at for found in lines.values() for at, _ in found))
            axis.set_ylim(0, axis.get_ylim()[1] * 1.06)
            axis.grid(True)
        legend_below(figure)
    return Plot(
        name="tokens",
        title="Time to first token and per output token",
        caption="Median time to first token (TTFT) and mean time per output token (TPOT), by prompt length.",
        figure=figure,
    )


def _stages(profile: Profile, palette: Palette) -> Plot | None:
    shown = [m for m in _timed(profile) if m.stages][-_MOST_STAGES:]
    if not shown:
        return None
    names = list(dict.fromkeys(stage.name for m in shown for stage in m.stages))
    figure = stacked(
        palette,
        rows=[(_name(m), {stage.name: stage.share * 100 for stage in m.stages}) for m in shown],
        kinds=names,
        unit="% of a call's time",
    )
    return Plot(
        name="stages", title="Stages of a call", caption="Each stage's share of a call, in order.", figure=figure
    )


def _drift(profile: Profile, palette: Palette) -> Plot | None:
    threads = max((m.threads for m in _timed(profile)), default=0)
    shown = [m for m in _timed(profile) if m.drift is not None and m.threads == threads][:_MOST_ROWS]
    if not shown:
        return None
    highest = 0.0
    with drawing(palette, 2.7 + 0.17 * len(shown)) as (figure, (axis,)):
        for index, m in enumerate(shown):
            assert m.drift is not None
            values = np.array(m.drift.p50_ms)
            times = values / np.median(values[: max(3, len(values) // 5)])
            at = (np.arange(len(values)) + 0.5) / len(values) * 100
            highest = max(highest, float(times.max()))
            axis.plot(at, times, color=palette.series[index % len(palette.series)], label=_name(m))
            if m.drift.degrades_after_s is not None:
                axis.axvline(m.drift.degrades_after_s / m.drift.window_s / len(values) * 100, color=palette.bad)
        axis.axhline(1.1, color=palette.bad, linewidth=1, linestyle=DASHES[1], label="10 % slower")
        axis.set_ylim(0, min(max(highest * 1.08, 1.4), _MOST_TIMES))
        axis.set_xlabel("% of the measurement's duration")
        axis.set_ylabel("median, 1 = at the start")
        axis.grid(True)
        legend_below(figure)
    cut = f" The highest value, {highest:.3g}, is outside the frame." if highest > _MOST_TIMES else ""
    return Plot(
        name="drift",
        title="Latency over time",
        caption="Medians of equal time windows, relative to the first ones. A line that stays above the dashed one has "
        f"become slower for good: heat, or other work on the machine.{cut}",
        figure=figure,
    )
