"""The plots of a profile: each drawn only where there is something to draw."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from edgecompress.profile.drawing import Palette, Plot, drawing
from edgecompress.profile.layers import last_operators, layer_of
from edgecompress.types.profile import Measurement, OperatorProfile, Peaks, Profile

_SHAPE = re.compile(r"^(\d+)x(\d+)$")
_BINS = 36
_MOST_ROWS, _MOST_LAYERS, _MOST_KINDS = 6, 16, 5
_DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def plots(profile: Profile, palette: Palette) -> list[Plot]:
    """All that there is something for."""
    made = (
        _histograms(profile, palette),
        _distribution(profile, palette),
        _lengths(profile, palette),
        _tokens(profile, palette),
        _stages(profile, palette),
        _drift(profile, palette),
        *(_layers(found, palette) for found, _ in last_operators(profile)),
        *(_roofline(found, peaks, palette) for found, peaks in last_operators(profile)),
        _pareto(profile, palette),
    )
    return [plot for plot in made if plot is not None]


def _timed(profile: Profile) -> list[Measurement]:
    return [m for m in profile.measurements if m.latency is not None]


def _name(m: Measurement) -> str:
    return f"{m.workload}, {m.threads} thread{'s' * (m.threads != 1)}"


def _histograms(profile: Profile, palette: Palette) -> Plot | None:
    threads = max((m.threads for m in _timed(profile)), default=0)
    shown = [m for m in _timed(profile) if m.threads == threads and len(m.quantiles_ms) == 101][:_MOST_ROWS]
    if not shown:
        return None
    with drawing(palette, 0.5 + 0.95 * len(shown), len(shown)) as (figure, axes):
        for m, axis in zip(shown, axes, strict=True):
            quantiles = np.array(m.quantiles_ms)
            low, high = quantiles[0], max(min(quantiles[99], 2.5 * quantiles[90]), quantiles[0] * 1.001)
            edges = np.linspace(low, high, _BINS + 1)
            below = np.interp(edges, quantiles, np.arange(101) / 100)
            axis.stairs(np.diff(below) * 100, edges, fill=True, color=palette.series[0], alpha=0.85)
            for percent in (50, 90, 99):
                if quantiles[percent] <= high:
                    axis.axvline(quantiles[percent], color=palette.ink, linewidth=0.8, linestyle=_DASHES[percent // 45])
            axis.set_title(
                f"{_name(m)}: p50 {_ms(quantiles[50])}, p90 {_ms(quantiles[90])}, p99 {_ms(quantiles[99])} ms"
            )
            axis.set_ylabel("% of calls", fontsize=7)
            axis.tick_params(labelsize=7)
        axes[-1].set_xlabel("latency of a call, ms")
    return Plot(
        name="histogram",
        title="How long calls took",
        caption="Each shape's calls by their latency; the lines are p50, p90 and p99. The slowest are further right.",
        figure=figure,
    )


def _distribution(profile: Profile, palette: Palette) -> Plot | None:
    shown = [m for m in _timed(profile) if len(m.quantiles_ms) == 101]
    if not shown:
        return None
    threads = sorted({m.threads for m in shown})
    workloads = list(dict.fromkeys(m.workload for m in shown))
    with drawing(palette, 3.2) as (figure, (axis,)):
        for m in shown:
            axis.plot(
                m.quantiles_ms,
                range(101),
                color=palette.series[workloads.index(m.workload) % len(palette.series)],
                linestyle=_DASHES[threads.index(m.threads) % len(_DASHES)],
                label=_name(m),
            )
        axis.set_xscale("log")
        _plain(axis.xaxis)
        axis.set_xlabel("latency of a call, ms")
        axis.set_ylabel("% of calls that took no longer")
        axis.grid(True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return Plot(
        name="cdf",
        title="Share of calls within a time",
        caption="For a time on the horizontal axis, how many of the calls took no longer than that.",
        figure=figure,
    )


def _lengths(profile: Profile, palette: Palette) -> Plot | None:
    lines: dict[tuple[int, int], list[tuple[int, Measurement]]] = defaultdict(list)
    for m in _timed(profile):
        shape = _SHAPE.match(m.workload)
        if shape and int(shape[2]) and len(m.quantiles_ms) == 101:
            lines[int(shape[1]), m.threads].append((int(shape[2]), m))
    if not any(len(points) > 1 for points in lines.values()) and len(lines) < 2:
        return None
    with drawing(palette, 3.2) as (figure, (axis,)):
        for index, ((batch, threads), points) in enumerate(sorted(lines.items())):
            points.sort(key=lambda point: point[0])
            colour = palette.series[index % len(palette.series)]
            tokens = [point[0] for point in points]
            middle, high = ([m.quantiles_ms[q] for _, m in points] for q in (50, 99))
            label = f"{batch} text{'s' * (batch > 1)}, {threads} thread{'s' * (threads > 1)}"
            axis.plot(tokens, middle, color=colour, marker="o", markersize=4, label=label)
            axis.fill_between(tokens, middle, high, color=colour, alpha=0.18, linewidth=0)
            if len(points) == 1:
                axis.vlines(tokens, middle, high, color=colour, alpha=0.4, linewidth=4)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        lengths = sorted({tokens for points in lines.values() for tokens, _ in points})
        axis.set_xticks(lengths, [str(length) for length in lengths])
        _plain(axis.yaxis)
        axis.set_xlabel("tokens of each text")
        axis.set_ylabel("ms of a call")
        axis.grid(True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return Plot(
        name="lengths",
        title="Latency by length and batch",
        caption="The median of a call, and shaded up to its p99.",
        figure=figure,
    )


def _tokens(profile: Profile, palette: Palette) -> Plot | None:
    points: dict[int, list[tuple[int, Measurement]]] = defaultdict(list)
    for m in _timed(profile):
        shape = _SHAPE.match(m.workload)
        if m.tokens is not None and shape and shape[1] == "1":
            points[m.threads].append((int(shape[2]), m))
    if not points:
        return None
    with drawing(palette, 4.2, 2) as (figure, axes):
        for index, (threads, found) in enumerate(sorted(points.items())):
            found.sort(key=lambda point: point[0])
            lengths = [length for length, _ in found]
            told = [m.tokens for _, m in found if m.tokens is not None]
            colour, label = palette.series[index], f"{threads} thread{'s' * (threads > 1)}"
            first = [tokens.ttft.p50_ms or tokens.ttft.mean_ms for tokens in told]
            axes[0].plot(lengths, first, color=colour, marker="o", markersize=4, label=label)
            each = [tokens.between.mean_ms for tokens in told]
            axes[1].plot(lengths, each, color=colour, marker="o", markersize=4, label=label)
        axes[0].set_ylabel("to the first token, ms")
        axes[1].set_ylabel("each further token, ms")
        axes[1].set_xlabel("tokens of the prompt")
        axes[0].legend()
        for axis in axes:
            axis.set_ylim(bottom=0)
            axis.grid(True)
    return Plot(
        name="tokens",
        title="First token, and the ones after it",
        caption="TTFT (median) and TPOT (mean) of one text, by the length of its prompt.",
        figure=figure,
    )


def _stages(profile: Profile, palette: Palette) -> Plot | None:
    shown = [m for m in _timed(profile) if m.stages]
    if not shown:
        return None
    names = list(dict.fromkeys(stage.name for m in shown for stage in m.stages))
    return _stacked(
        palette,
        rows=[(_name(m), {stage.name: stage.share * 100 for stage in m.stages}) for m in shown],
        kinds=names,
        unit="% of the time of a call",
        plot=("stages", "Where a call's time goes", "The stages of a call in their order."),
    )


def _layers(found: OperatorProfile, palette: Palette) -> Plot | None:
    by_layer: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_kind: dict[str, float] = defaultdict(float)
    for operator in found.operators:
        by_layer[layer_of(operator.module)][operator.op] += operator.ms
        by_kind[operator.op] += operator.ms
    kinds = sorted(by_kind, key=lambda kind: -by_kind[kind])[:_MOST_KINDS]
    rows = []
    largest = sorted(by_layer, key=lambda layer: -sum(by_layer[layer].values()))[:_MOST_LAYERS]
    for layer in (layer for layer in by_layer if layer in largest):
        parts = {kind: by_layer[layer].get(kind, 0.0) for kind in kinds}
        rows.append((layer, parts | {"others": sum(by_layer[layer].values()) - sum(parts.values())}))
    if not rows:
        return None
    left = len(by_layer) - len(rows)
    more = f" The {left} smallest are left out." if left else ""
    of = f"{found.workload}, {found.threads} thread{'s' * (found.threads > 1)}{_phase(found)}"
    return _stacked(
        palette,
        rows=rows,
        kinds=[*kinds, "others"],
        unit="ms",
        plot=(
            f"layers{_suffix(found)}",
            f"Time by layer: {of}",
            f"The graph's nodes, timed one by one, in the student's own layers.{more}",
        ),
    )


def _stacked(
    palette: Palette,
    rows: Sequence[tuple[str, dict[str, float]]],
    kinds: Sequence[str],
    unit: str,
    plot: tuple[str, str, str],
) -> Plot:
    with drawing(palette, 1.15 + 0.24 * len(rows)) as (figure, (axis,)):
        left = np.zeros(len(rows))
        for index, kind in enumerate(kinds):
            width = np.array([parts.get(kind, 0.0) for _, parts in rows])
            axis.barh(
                range(len(rows)),
                width,
                left=left,
                height=0.7,
                label=kind,
                color=palette.series[index % len(palette.series)],
            )
            left += width
        axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.grid(True, axis="x")
        figure.legend(loc="outside lower center", ncols=2 if max(map(len, kinds)) > 14 else 3)
    name, title, caption = plot
    return Plot(name=name, title=title, caption=caption, figure=figure)


def _drift(profile: Profile, palette: Palette) -> Plot | None:
    shown = [m for m in _timed(profile) if m.drift is not None]
    if not shown:
        return None
    with drawing(palette, 2.8) as (figure, (axis,)):
        for index, m in enumerate(shown):
            assert m.drift is not None
            values = np.array(m.drift.p50_ms)
            at = (np.arange(len(values)) + 0.5) / len(values) * 100
            colour = palette.series[index % len(palette.series)]
            axis.plot(at, values / np.median(values[: max(3, len(values) // 5)]), color=colour, label=_name(m))
            if m.drift.degrades_after_s is not None:
                axis.axvline(m.drift.degrades_after_s / m.drift.window_s / len(values) * 100, color=palette.bad)
        axis.axhline(1.1, color=palette.bad, linewidth=0.8, linestyle=_DASHES[1])
        axis.set_ylim(0, 3)
        axis.set_xlabel("% of the measurement")
        axis.set_ylabel("median, times the first ones")
        axis.grid(True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return Plot(
        name="drift",
        title="Latency over time",
        caption="Above the dashed line for good is slower by a tenth: heat, or another's work.",
        figure=figure,
    )


def _roofline(found: OperatorProfile, peaks: Peaks, palette: Palette) -> Plot | None:
    shown = [o for o in found.operators if o.ops > 0 and o.bytes > 0 and o.ms > 0 and o.share > 0.005]
    if not shown:
        return None
    kinds = sorted({o.op for o in shown}, key=lambda kind: -sum(o.ms for o in shown if o.op == kind))
    top = kinds[: len(palette.series) - 1]
    with drawing(palette, 3.8) as (figure, (axis,)):
        low, high = (edge([o.ops / o.bytes for o in shown]) for edge in (min, max))
        x = np.geomspace(min(low, 0.1), max(high, 1e3), 200)
        for dtype, rate in sorted(peaks.ops_per_s.items(), key=lambda item: item[1]):
            for width, dash in ((peaks.memory_bytes_per_s, _DASHES[1]), (peaks.cache_bytes_per_s, _DASHES[0])):
                axis.plot(x, np.minimum(x * width, rate), color=palette.ink, linewidth=0.9, linestyle=dash)
            axis.annotate(
                f"{dtype} products {_rate(rate)}", (x[-1], rate), ha="right", va="bottom", fontsize=8, color=palette.ink
            )
        for kind in kinds:
            points = [o for o in shown if o.op == kind]
            colour = palette.series[top.index(kind)] if kind in top else palette.series[-1]
            axis.scatter(
                [o.ops / o.bytes for o in points],
                [o.ops / o.ms * 1e3 for o in points],
                s=[12 + 260 * o.share for o in points],
                color=colour,
                alpha=0.75,
                linewidths=0,
                label=kind if kind in top else None,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("operations a byte that is moved")
        axis.set_ylabel("operations a second")
        axis.grid(True)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, markerscale=0.8)
    of = f"{found.workload}, {found.threads} thread{'s' * (found.threads > 1)}{_phase(found)}"
    return Plot(
        name=f"roofline{_suffix(found)}",
        title=f"Against the machine's roof: {of}",
        caption="Each point is a node, its size its share of the time. The lines are what this machine was measured to "
        f"do: read {_rate(peaks.memory_bytes_per_s)}B of memory (dashed) or {_rate(peaks.cache_bytes_per_s)}B of what "
        "a call moves again and again, and its largest products.",
        figure=figure,
    )


def _pareto(profile: Profile, palette: Palette) -> Plot | None:
    if len(profile.tried) < 2:
        return None
    better_is_more = "cosine" in profile.tried[0].quality
    with drawing(palette, 3.0) as (figure, (axis,)):
        front, best = [], -np.inf
        for row in sorted(profile.tried, key=lambda row: row.ms):
            value = row.value if better_is_more else -row.value
            if value > best:
                best = value
                front.append(row)
        axis.step([row.ms for row in front], [row.value for row in front], where="post", color=palette.series[0], lw=1)
        for index, row in enumerate(sorted(profile.tried, key=lambda row: row.ms)):
            axis.scatter(
                [row.ms],
                [row.value],
                s=70 if row.chosen else 30,
                color=palette.series[1 if row.chosen else 0],
                zorder=3,
            )
            axis.annotate(
                f"{row.precision}{' (this one)' if row.chosen else ''}",
                (row.ms, row.value),
                xytext=(0, 8 if index % 2 == 0 else -15),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=palette.ink,
            )
        axis.margins(0.14, 0.16)
        axis.set_xlabel("ms of a call, at the export")
        axis.set_ylabel(profile.tried[0].quality)
        axis.grid(True)
    return Plot(
        name="pareto",
        title="Quality against latency",
        caption="The precisions that the export tried, on the machine that it was made on; on the line nothing is both "
        "better and faster.",
        figure=figure,
    )


def _phase(found: OperatorProfile) -> str:
    return "" if found.phase == "call" else f", {found.phase}"


def _suffix(found: OperatorProfile) -> str:
    return "" if found.phase == "call" else f"-{found.phase}"


def _plain(axis: object) -> None:
    """Numbers as they are, not as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _rate(per_s: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if per_s >= size:
            return f"{per_s / size:.3g} {letter}"
    return f"{per_s:.3g} "
