"""The loss curve can be read: plain numbers at its ticks, and a line through batches that jump."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgecompress.distill.curve import Point, curve_plot, running_mean, write_curve
from edgecompress.profile.drawing import svg_file

pytest.importorskip("matplotlib")

TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")
RANGES = [(1.2, 0.16), (3.0, 0.31), (9.0, 2e-4), (0.7, 0.4), (5e-3, 4e-4), (2e4, 11.0)]


def falling(
    first: float, last: float, count: int = 120, terms: tuple[str, ...] = ("hidden", "relations")
) -> list[Point]:
    """From one value to the other, each second point a third lower: short and long batches in turn."""
    values = np.geomspace(first, last, count) * np.where(np.arange(count) % 2, 2 / 3, 1.0)
    return [
        Point(step=5 * (i + 1), loss=float(v), learning_rate=1e-3, terms={name: float(v) / 2 for name in terms})
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize("terms", [("logits",), ("hidden", "relations")])
def test_ticks_are_plain_numbers(ends: tuple[float, float], terms: tuple[str, ...]) -> None:
    svg = svg_file(curve_plot(falling(*ends, terms=terms)))
    assert "$" not in svg
    assert "mathdefault" not in svg
    labels = TEXT.findall(svg)
    assert {"step", "loss"} <= set(labels)
    heights = [label for label in labels if label.replace("\N{MINUS SIGN}", "-").strip("-").replace(".", "").isdigit()]
    assert len(heights) >= 6, labels  # along both axes


def test_the_dark_line_runs_through_the_two_bands() -> None:
    values = [point.loss for point in falling(1.0, 0.5)]
    means = running_mean(values)
    assert len(means) == len(values)
    assert means[0] == values[0]
    jumps = np.abs(np.diff(np.log(values)))[20:]
    steps = np.abs(np.diff(np.log(means)))[20:-6]
    assert steps.max() < jumps.min() / 4
    assert running_mean([3.0, 1.0]) == [3.0, 1.0]
    assert running_mean([]) == []


def test_a_curve_shows_each_series_pale_and_dark() -> None:
    (axis,) = curve_plot(falling(1.0, 0.01)).figure.axes
    lines = axis.get_lines()
    assert [line.get_alpha() for line in lines] == [0.3, None] * 3
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["loss", "hidden", "relations"]
    for pale, dark in zip(lines[::2], lines[1::2], strict=True):
        assert pale.get_color() == dark.get_color()
        assert list(dark.get_ydata()) == running_mean(list(pale.get_ydata()))


def test_values_without_a_logarithm_are_drawn(tmp_path: Path) -> None:
    write_curve(tmp_path, [Point(step=n, loss=0.0, learning_rate=0.0, terms={"a": 0.0, "b": -1.0}) for n in (1, 2, 3)])
    assert "$" not in (tmp_path / "loss.svg").read_text()
    assert (tmp_path / "loss.png").stat().st_size > 0
