"""Plots of a profile's graph: its layers, its nodes under the roofline, and the precisions that the export tried."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from edgecompress.profile.drawing import (
    DASHES,
    Palette,
    Plot,
    drawing,
    in_rates,
    label_points,
    legend_below,
    rate,
    stacked,
)
from edgecompress.profile.layers import layer_of, moved_bytes
from edgecompress.profile.peaks import memory_rate, read_rate
from edgecompress.types.profile import OperatorProfile, Peaks, Profile
from edgecompress.types.workload import CALL

_MOST_LAYERS, _MOST_KINDS = 16, 5
_LEAST_SHARE = 0.002  # of the time, for a node to be drawn
_MARKERS = "osD^v"  # a dtype each
_GLYPHS = "●■◆▲▼"
_HEADROOM = 2.2  # the axis of rates ends at this multiple of the highest
_LABEL_POINTS = 24  # height of a peak's label, two lines
_AXIS_SHARE = 0.6  # of the figure's height, at least, above the legend


def workload_of(found: OperatorProfile) -> str:
    phase = "" if found.phase == CALL else f", {found.phase}"
    return f"{found.workload}, {found.threads} thread{'s' * (found.threads != 1)}{phase}"


def _suffix(found: OperatorProfile) -> str:
    return "" if found.phase == CALL else f"-{found.phase}"


def layers_plot(found: OperatorProfile, palette: Palette) -> Plot | None:
    """Each layer's time by kind of operator, and its time at the roof."""
    by_layer: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_kind: dict[str, float] = defaultdict(float)
    roofs: dict[str, float] = defaultdict(float)
    for operator in found.operators:
        layer = layer_of(operator.module)
        by_layer[layer][operator.op] += operator.ms
        by_kind[operator.op] += operator.ms
        roofs[layer] += operator.roof_ms
    if not by_layer:
        return None
    kinds = sorted(by_kind, key=lambda kind: -by_kind[kind])
    kinds, few = kinds[:_MOST_KINDS], kinds[_MOST_KINDS:]
    largest = sorted(by_layer, key=lambda layer: -sum(by_layer[layer].values()))[:_MOST_LAYERS]
    rows = []
    for layer in (layer for layer in by_layer if layer in largest):
        parts = {kind: by_layer[layer].get(kind, 0.0) for kind in kinds}
        rows.append((layer, parts | {"others": sum(by_layer[layer].get(kind, 0.0) for kind in few)}))
    rows.sort(key=lambda row: row[0] == "the rest")
    figure = stacked(
        palette,
        rows=rows,
        kinds=[*kinds, *(["others"] if few else [])],
        unit="ms",
        ticks=[roofs[layer] for layer, _ in rows],
        totals=True,
    )
    left = len(by_layer) - len(rows)
    more = f" The {left} smallest are not shown." if left else ""
    return Plot(
        name=f"layers{_suffix(found)}",
        title=f"Time by layer: {workload_of(found)}",
        caption="The graph's nodes, timed one by one, by the student's layers. The vertical stroke is the time at the "
        f"roof: what this machine's measured peaks allow.{more}",
        figure=figure,
    )


def lifted(places: Sequence[float], gap: float) -> list[float]:
    """How far to move each of ``places``, which ascend, up so that all are at least ``gap`` apart."""
    lifts: list[float] = []
    end = -math.inf
    for place in places:
        lifts.append(max(0.0, end + gap - place))
        end = place + lifts[-1]
    return lifts


def roofline_plot(found: OperatorProfile, peaks: Peaks, palette: Palette) -> Plot | None:
    """Each node's rate over its arithmetic intensity, under this machine's measured peaks."""
    counted = [o for o in found.operators if o.ops > 0 and o.bytes > 0 and o.ms > 0]
    shown = [o for o in counted if o.share >= _LEAST_SHARE]
    if not shown or not peaks.ops_per_s:
        return None
    kinds = sorted({o.op for o in shown}, key=lambda kind: -sum(o.ms for o in shown if o.op == kind))
    top = kinds if len(kinds) <= len(palette.series) else kinds[: len(palette.series) - 1]
    dtypes = sorted(peaks.ops_per_s, key=lambda dtype: peaks.ops_per_s[dtype])
    rates_read = {"memory": memory_rate(peaks), "caches": read_rate(peaks, moved_bytes(found))}
    slopes = sorted(rates_read.items(), key=lambda s: s[1])
    rates = [o.ops / o.ms * 1e3 for o in shown]
    ceiling = max(max(peaks.ops_per_s.values()), *rates)
    ridge = ceiling / slopes[0][1]
    low = min(*(o.ops / o.bytes for o in shown), 1.0) / 2
    high = max(*(o.ops / o.bytes for o in shown), ridge) * 3
    bottom = min(min(rates), low * slopes[0][1]) / 1.5
    with drawing(palette, 4.3) as (figure, (axis,)):
        x = np.geomspace(low, high, 200)
        for index, (_, width) in enumerate(slopes):
            for dtype in dtypes:
                y = np.minimum(x * width, peaks.ops_per_s[dtype])
                axis.plot(x, y, color=palette.ink, linewidth=1, linestyle=DASHES[1 - index])
        used = [dtype for dtype in dtypes if any(o.computes == dtype for o in shown)]
        height_points = figure.get_figheight() * 72 * _AXIS_SHARE
        places = [math.log(peaks.ops_per_s[dtype] / bottom) for dtype in dtypes]
        places = [place / math.log(ceiling * _HEADROOM / bottom) * height_points for place in places]
        for dtype, lift in zip(dtypes, lifted(places, _LABEL_POINTS), strict=True):
            glyph = f"{_GLYPHS[used.index(dtype) % len(_GLYPHS)]} " if dtype in used and len(used) > 1 else ""
            axis.annotate(
                f"{glyph}{dtype}\n{rate(peaks.ops_per_s[dtype])}",
                (1, peaks.ops_per_s[dtype]),
                xycoords=("axes fraction", "data"),
                xytext=(4, lift),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=palette.ink,
            )
        for kind in kinds:
            for dtype in used:
                points = [o for o in shown if o.op == kind and o.computes == dtype]
                axis.scatter(
                    [o.ops / o.bytes for o in points],
                    [o.ops / o.ms * 1e3 for o in points],
                    s=[14 + 240 * o.share for o in points],
                    marker=_MARKERS[used.index(dtype) % len(_MARKERS)],
                    color=palette.series[top.index(kind) if kind in top else len(palette.series) - 1],
                    alpha=0.75,
                    linewidths=0,
                    zorder=3,
                )
        for index, kind in enumerate(top):
            axis.scatter([], [], color=palette.series[index], label=kind, s=30)
        if len(top) < len(kinds):
            axis.scatter([], [], color=palette.series[-1], label="others", s=30)
        in_rates(axis, "x", low, high)
        in_rates(axis, "y", bottom, ceiling * _HEADROOM)
        axis.set_xlabel("operations per byte moved")
        axis.set_ylabel("operations/s")
        axis.grid(True)
        legend_below(figure)
    drawn = sum(o.share for o in shown)
    reads = " and ".join(
        f"{rate(width, 'B')}/s {'from memory' if name == 'memory' else 'rereading what one call moves'} "
        f"({'solid' if index else 'dashed'})"
        for index, (name, width) in enumerate(slopes)
    )
    return Plot(
        name=f"roofline{_suffix(found)}",
        title=f"Roofline: {workload_of(found)}",
        caption="A point is a node. Its size is its share of the time, its distance below the lines the possible gain. "
        f"Measured peaks: reads of {reads}, and matrix products (level). The {len(shown)} nodes shown take "
        f"{drawn:.0%} of the time; the others compute nothing or take almost no time.",
        figure=figure,
    )


def pareto_plot(profile: Profile, palette: Palette) -> Plot | None:
    """The precisions that the export tried."""
    if len(profile.tried) < 2:
        return None
    rows = sorted(profile.tried, key=lambda row: (row.ms, -row.value))
    quality = rows[0].quality
    sign = 1 if "cosine" in quality else -1  # a lower perplexity ratio is better
    front, best = [], -np.inf
    for row in rows:
        if sign * row.value > best:
            best = sign * row.value
            front.append(row)
    with drawing(palette, 3.3) as (figure, (axis,)):
        for row in rows:
            on_front, colour = row in front, palette.series[1 if row.chosen else 0]
            axis.scatter(
                [row.ms],
                [row.value],
                s=85 if row.chosen else 38,
                marker="D" if row.chosen else "o",
                facecolors=colour if on_front else "none",
                edgecolors=colour,
                linewidths=1.5,
                zorder=3,
            )
        axis.margins(0.16, 0.16)
        axis.set_xlim(0, axis.get_xlim()[1])
        if sign < 0:
            axis.invert_yaxis()
        at = [*(row.ms for row in front), axis.get_xlim()[1]]
        values = [*(row.value for row in front), front[-1].value]
        axis.step(at, values, where="post", color=palette.series[0], linewidth=1)
        corners = [
            corner for x, (y, z) in zip(at, pairwise([values[0], *values]), strict=True) for corner in ((x, y), (x, z))
        ]
        axis.set_xlabel("ms per call at the export")
        axis.set_ylabel(quality if sign > 0 else f"{quality} (lower is better, at the top)")
        axis.grid(True)
        label_points(
            axis,
            [(row.ms, row.value, f"{row.precision}{' (this one)' if row.chosen else ''}") for row in rows],
            corners,
            palette.ink,
        )
    return Plot(
        name="pareto",
        title="Quality against latency",
        caption="The precisions that the export tried, on the machine of the export. Filled points on the line are the "
        "Pareto front: no other precision is both better and faster.",
        figure=figure,
    )
