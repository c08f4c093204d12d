"""The loss curve, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.formats.codec import dumps
from edgecompress.profile.drawing import DASHES, LIGHT, Plot, drawing, log_axis, png_file, svg_file

CURVE, DRAWN = "loss.json", "loss.svg"
_FEWEST = 2  # points for a line
_PALE = 0.3
_LOGARITHMIC = 6  # ratio of the largest to the smallest value


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over the steps since the previous point; ``terms`` are unweighted."""

    step: int
    loss: float
    learning_rate: float
    terms: Mapping[str, float] = field(default_factory=dict)


def write_curve(folder: Path, points: Sequence[Point]) -> None:
    """Write ``loss.json``, and ``loss.svg`` and ``loss.png`` if matplotlib is installed."""
    (folder / CURVE).write_text(dumps({"points": list(points)}), encoding="utf-8")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return
    if len(points) >= _FEWEST:
        plot = curve_plot(points)
        (folder / DRAWN).write_text(svg_file(plot), encoding="utf-8")
        (folder / DRAWN).with_suffix(".png").write_bytes(png_file(plot))


def curve_plot(points: Sequence[Point]) -> Plot:
    """Pale values under their running mean: batches hold texts of like length, so the loss jumps between them."""
    names = sorted({name for point in points for name in point.terms})
    shown = {"loss": [point.loss for point in points]}
    for name in names if len(names) > 1 else []:
        shown[name.replace("_", " ")] = [point.terms.get(name, float("nan")) for point in points]
    steps = [point.step for point in points]
    with drawing(LIGHT, 2.8) as (figure, (axis,)):
        for index, (name, values) in enumerate(shown.items()):
            colour = LIGHT.series[index % len(LIGHT.series)]
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=_PALE)
            axis.plot(steps, running_mean(values), color=colour, linestyle=DASHES[bool(index)], label=name)
        positive = [value for values in shown.values() for value in values if value > 0]
        if positive and max(positive) > _LOGARITHMIC * min(positive):
            log_axis(axis, "y", min(positive), max(positive), lambda value: f"{value:g}")
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.grid(True)
        if len(shown) > 1:
            axis.legend(loc="upper right")
    return Plot(
        name="loss",
        title="Loss of the student",
        caption=f"Pale: means over the steps since the previous point; terms are unweighted. "
        f"Dark: the running mean over {2 * _reach(len(points)) + 1} points.",
        figure=figure,
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred on each value. At the start, where the loss falls fast, the window is smaller."""
    reach = _reach(len(values))
    means = []
    for place in range(len(values)):
        before = min(place // 2, reach)
        window = values[place - before : place + before + 1]
        means.append(sum(window) / len(window))
    return means


def _reach(points: int) -> int:
    return points // 20
