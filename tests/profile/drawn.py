"""What nobody could read in a plot: text cut off or overlapping, markup, missing glyphs, axes without labels."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

from edgecompress.profile.drawing import Plot, png_file, svg_file

_TOUCH_PX = 1.5  # two boxes may share their edges


def problems(plot: Plot) -> list[str]:
    """In words; empty for a plot that can be read."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        canvas = FigureCanvasAgg(plot.figure)
        canvas.draw()
    found = [str(warning.message) for warning in said]
    texts = _texts(plot.figure)
    frame = plot.figure.bbox
    for text, box in texts:
        if "$" in text or "mathdefault" in text:
            found.append(f"markup: {text!r}")
        if box.x0 < frame.x0 - 1 or box.y0 < frame.y0 - 1 or box.x1 > frame.x1 + 1 or box.y1 > frame.y1 + 1:
            found.append(f"cut off: {text!r}")
    for (first, a), (second, b) in combinations(texts, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > _TOUCH_PX and min(a.y1, b.y1) - max(a.y0, b.y0) > _TOUCH_PX:
            found.append(f"on top of each other: {first!r} and {second!r}")
    for axes in plot.figure.axes:
        for along in (axes.xaxis, axes.yaxis):
            if along.get_scale() == "log" and len(_ticks(along)) < 2 and len(axes.lines[0].get_xdata()) > 1:
                found.append(f"a logarithmic axis with the ticks {[label.get_text() for label in _ticks(along)]}")
    last = plot.figure.axes[-1]
    if not last.get_xlabel():
        found.append("no label below the last axes")
    if not (
        last.get_ylabel() or plot.figure.get_supylabel() or any(not _number(t.get_text()) for t in _ticks(last.yaxis))
    ):
        found.append("no label beside the axes")
    return found


def _texts(figure: Any) -> list[tuple[str, Any]]:
    """Everything that is written in a figure that was drawn, and where."""
    from matplotlib.text import Text

    axes = [along for each in figure.axes for along in (each.xaxis, each.yaxis)]
    labels = {id(label) for along in axes for label in along.get_ticklabels(which="both")}
    labels |= {id(tick.label2) for along in axes for tick in along.get_major_ticks()}
    written = [text for text in figure.findobj(Text) if id(text) not in labels and text.get_visible()]
    written += [label for along in axes for label in _ticks(along)]
    return [(text.get_text(), text.get_window_extent()) for text in written if text.get_text().strip()]


def _ticks(along: Any) -> list[Any]:
    """The labels of an axis that are in view."""
    low, high = sorted(along.get_view_interval())
    slack = 1e-9 * max(abs(low), abs(high))
    ticks = along.get_major_ticks()
    return [t.label1 for t in ticks if low - slack <= t.get_loc() <= high + slack and t.label1.get_text()]


def _number(text: str) -> bool:
    return text.replace("−", "-").replace(".", "").replace("-", "").strip(" GMTk").isdigit()


def both_files(plot: Plot) -> tuple[str, bytes]:
    """As SVG and as PNG."""
    return svg_file(plot), png_file(plot)
