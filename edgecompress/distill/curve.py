"""The loss over the steps: kept as JSON, and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.formats.codec import dumps
from edgecompress.profile.drawing import DASHES, LIGHT, Plot, drawing, png_file, svg_file

CURVE, DRAWN = "loss.json", "loss.svg"
_FEWEST = 2  # points that make a line


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over the steps since the point before; ``terms`` are unweighted."""

    step: int
    loss: float
    learning_rate: float
    terms: Mapping[str, float] = field(default_factory=dict)


def write_curve(folder: Path, points: Sequence[Point]) -> None:
    """``loss.json``, and ``loss.svg`` and ``loss.png`` where matplotlib is installed."""
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
    names = sorted({name for point in points for name in point.terms})
    with drawing(LIGHT, 2.8) as (figure, (axis,)):
        steps = [point.step for point in points]
        axis.plot(steps, [point.loss for point in points], color=LIGHT.series[0], label="loss")
        for index, name in enumerate(names if len(names) > 1 else []):
            values = [point.terms.get(name, float("nan")) for point in points]
            colour = LIGHT.series[(index + 1) % len(LIGHT.series)]
            axis.plot(steps, values, color=colour, linestyle=DASHES[1], label=name.replace("_", " "))
        positive = [value for point in points for value in (point.loss, *point.terms.values()) if value > 0]
        if positive and max(positive) > 6 * min(positive):
            axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.grid(True)
        if len(names) > 1:
            axis.legend(loc="upper right")
    return Plot(
        name="loss",
        title="Loss of the student",
        caption="The mean over the steps since the point before; terms without their weights.",
        figure=figure,
    )
