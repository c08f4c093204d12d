"""Every plot of a report and of the benchmarks' page exists as SVG and PNG, and can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgecompress.profile.drawing import LIGHT, MARKS, Plot, drawing, in_milliseconds, log_axis
from edgecompress.profile.graph_plots import roofline_plot
from edgecompress.profile.plots import plots
from edgecompress.types.profile import Profile
from tests.profile import examples
from tests.profile.drawn import both_files, problems

pytest.importorskip("matplotlib")

CASES: dict[str, tuple[Callable[[], Profile], set[str]]] = {
    "encoder": (examples.encoder, {"histogram", "lengths", "stages", "drift", "layers", "roofline", "pareto"}),
    "decoder": (
        examples.decoder,
        {"histogram", "lengths", "tokens", "stages", "drift", "layers-prefill", "layers-decode", "roofline-prefill",
         "roofline-decode", "pareto"},
    ),
    "extreme": (examples.extreme, {"histogram", "lengths", "stages", "drift", "layers", "roofline", "pareto"}),
    "smallest": (examples.smallest, {"histogram", "stages"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_plot_of_a_profile_can_be_read(name: str) -> None:
    make, names = CASES[name]
    drawn = plots(make(), LIGHT)
    assert {plot.name for plot in drawn} == names
    for plot in drawn:
        svg, png = both_files(plot)
        ElementTree.fromstring(svg)
        assert "mathdefault" not in svg
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        odd = [each for each in problems(plot) if not (name == "extreme" and _of_an_odd_name(each))]
        assert odd == [], plot.name
        assert plot.title
        assert plot.caption.endswith(".")


def test_peaks_of_any_distance_keep_their_labels_apart() -> None:
    found = examples.encoder()
    for ratio in (1.0, 1.2, 1.9, 3.0):
        close = replace(examples.peaks(2), ops_per_s={"float32": 8e10, "int8": 8e10 * ratio})
        plot = roofline_plot(found.operators[0], close, LIGHT)
        assert plot is not None
        assert problems(plot) == [], ratio


def _of_an_odd_name(problem: str) -> bool:
    """A module's name appears as it is: with dollar signs, or in a script that the font lacks."""
    return "$encoder$" in problem or "missing from" in problem


def test_every_plot_of_the_benchmarks_page_can_be_read() -> None:
    from benchmarks.history import _plot
    from benchmarks.history import plots as history_plots
    from benchmarks.ratios import Ratio
    from benchmarks.result_lines import RESULTS
    from benchmarks.suites import Field

    drawn = [found[0] for found in history_plots(RESULTS).values()]
    assert len(drawn) > 10
    days = [f"2026-{month:02}-28" for month in range(1, 13)]
    ratio = Ratio(key=(), name="times_as_fast", median=2.0, low=1.5, high=2.5, field=Field())
    names = [f"edgecompress ours-{n}, against onnxruntime-genai int4 block of {n} weights" for n in range(6)]
    drawn.append(_plot("long", "many days, long names", [(name, [(day, ratio) for day in days]) for name in names]))
    for plot in drawn:
        assert problems(plot) == [], plot.title


def test_a_plot_that_cannot_be_read_is_seen() -> None:
    """The check itself sees each kind of fault."""

    def found(change: Callable[[object], object]) -> list[str]:
        with drawing(LIGHT, 2.0) as (figure, (axis,)):
            axis.plot([1, 1000], [1, 1000])
            axis.set_xlabel("x")
            axis.set_ylabel("y")
            change(axis)
        return problems(Plot(name="p", title="t", caption="c.", figure=figure))

    assert found(lambda axis: None) == []
    assert any("markup" in each for each in found(lambda axis: axis.set_yscale("log")))  # type: ignore[attr-defined]
    assert found(lambda axis: log_axis(axis, "y", 1, 1000, str)) == []  # type: ignore[arg-type]
    assert any(
        "cut off" in each for each in found(lambda axis: axis.text(900, 10, "a long text " * 9).set_in_layout(False))
    )  # type: ignore[attr-defined]
    assert any("on top" in each for each in found(lambda axis: [axis.text(1, 1, "one"), axis.text(1, 1, "two")]))  # type: ignore[attr-defined]
    assert any("Glyph" in each for each in found(lambda axis: axis.set_title("层")))  # type: ignore[attr-defined]
    assert any("no label below" in each for each in found(lambda axis: axis.set_xlabel("")))  # type: ignore[attr-defined]
    assert any("no label beside" in each for each in found(lambda axis: axis.set_ylabel("")))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((3.0, 5.0), None),  # near each other: linear
        ((0.4, 30.0), ["0.5", "1", "2", "5", "10", "20"]),
        ((0.02, 48_000.0), ["0.1", "1", "10", "100", "1000", "10000"]),
    ],
)
def test_ticks_of_times_are_numbers(values: tuple[float, float], labels: list[str] | None) -> None:
    with drawing(MARKS, 2.0) as (figure, (axis,)):
        axis.plot([0, 1], values)
        in_milliseconds(axis, "y", values)
        axis.set_ylim(*values)
        figure.draw_without_rendering()
        low, high = axis.get_ylim()
        shown = [t.label1.get_text() for t in axis.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len(shown) >= 3
    assert all(float(text) >= 0 for text in shown)
    if labels is not None:
        assert shown == labels


def test_files_are_where_the_report_says(tmp_path: Path) -> None:
    from edgecompress.profile.page import write_report

    write_report(examples.encoder(), tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.{end}" for name in CASES["encoder"][1] for end in ("svg", "png")
    }
