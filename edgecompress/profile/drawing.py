"""Plots as SVG in a page's colours, light or dark, and as plain SVG and PNG files; with matplotlib.

A figure for a page is drawn in placeholder colours, which become CSS variables. Text stays text, and the same figure
gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from edgecompress.errors import HostError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which most colour-blind readers can tell apart; lighter ones for a dark page.
COLOURS: Mapping[str, tuple[str, str, str]] = {  # name -> placeholder, light, dark
    "ink": ("#010203", "#1c2430", "#e8ecf1"),
    "faint": ("#010204", "#c9d0d9", "#3a4452"),
    "s1": ("#010205", "#0072b2", "#56b4e9"),
    "s2": ("#010206", "#d55e00", "#ff9248"),
    "s3": ("#010207", "#007a5a", "#3fd0a4"),
    "s4": ("#010208", "#b0568f", "#e79ccb"),
    "s5": ("#010209", "#8a6d00", "#f0d24a"),
    "s6": ("#01020a", "#5f6b7a", "#9aa7b8"),
    "bad": ("#01020b", "#b3261e", "#ff8a80"),
}
DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True, kw_only=True)
class Palette:
    ink: str
    faint: str
    bad: str
    series: tuple[str, ...]


def _palette(kind: int) -> Palette:
    found = {name: colours[kind] for name, colours in COLOURS.items()}
    return Palette(
        ink=found["ink"],
        faint=found["faint"],
        bad=found["bad"],
        series=tuple(found[f"s{number}"] for number in range(1, 7)),
    )


MARKS, LIGHT = _palette(0), _palette(1)
WIDTH_IN = 4.0  # narrow: a phone shows the text at 10 px
_DPI = 200
_SHORT, _LONG = 22, 44  # characters of a legend's name, in two columns and in one
_LEAST_GAP = 0.12  # of an axis, between two ticks with numbers
_ID = re.compile(r'(id="|href="#|url\(#)([^")]+)')


def _settings(palette: Palette) -> Any:
    """For matplotlib's rcParams."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "edgecompress",
        "text.parse_math": False,  # a module's name may contain dollar signs
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": palette.faint,
        "axes.labelcolor": palette.ink,
        "axes.titlesize": 9,
        "axes.titlecolor": palette.ink,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": palette.ink,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
        "grid.color": palette.faint,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.handlelength": 2.6,
        "lines.linewidth": 1.7,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
    }


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with a caption that says what it shows."""

    name: str  # stem of its files
    title: str
    caption: str
    figure: Figure


def require_matplotlib() -> None:
    """Raises HostError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise HostError("plots need matplotlib", hint="pip install 'edgecompress[report]'") from None


@contextmanager
def drawing(palette: Palette, height_in: float, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure as wide as a phone, and its axes from top to bottom."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Made

    with rc_context(_settings(palette)):
        figure = Made(figsize=(WIDTH_IN, height_in), layout="constrained")
        made = figure.subplots(rows, 1, squeeze=False)
        axes = [row[0] for row in made]
        for each in axes:
            each.set_axisbelow(True)
        yield figure, axes


def in_milliseconds(axis: Axes, of: str, values: Sequence[float]) -> None:
    """Label an axis of times ("x" or "y") with plain numbers; it becomes logarithmic if the values are far apart."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    known = [value for value in values if value > 0]
    if known and max(known) > 6 * min(known):
        log_axis(axis, of, min(known), max(known), lambda value: f"{value:g}")
        return
    along = getattr(axis, f"{of}axis")
    along.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    along.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def in_rates(axis: Axes, of: str, low: float, high: float, unit: str = "") -> None:
    """A logarithmic axis from ``low`` to ``high``, labelled with prefixes: 100 G, not 10^11."""
    log_axis(axis, of, low, high, lambda value: rate(value, unit))
    getattr(axis, f"set_{of}lim")(low, high)


def log_axis(axis: Axes, of: str, low: float, high: float, label: Callable[[float], str]) -> None:
    """A logarithmic axis ("x" or "y") whose ticks are readable: decades, or 1, 2 and 5 where there are few of them.

    ``low`` and ``high``: of the values that it shows. ``label``: the text of a tick; matplotlib's own is in math
    markup, which stays unparsed here.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    getattr(axis, f"set_{of}scale")("log")
    along = getattr(axis, f"{of}axis")
    along.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high < 500 * low else (1,)))
    along.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    along.set_minor_locator(NullLocator())
    along.set_minor_formatter(NullFormatter())


def in_sizes(axis: Axes, sizes: Iterable[int]) -> None:
    """A horizontal axis of counts, in powers of two, with a tick at each size that has room for one."""
    from matplotlib.ticker import NullLocator

    found = sorted(set(sizes))
    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    apart = (found[-1] / found[0]) ** _LEAST_GAP
    ticks = [found[0]]
    for size in found[1:]:
        if size >= ticks[-1] * apart:
            ticks.append(size)
    if ticks[-1] != found[-1]:  # the largest is labelled in any case
        ticks[-1] = found[-1]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    if len(found) == 1:
        axis.set_xlim(found[0] / 2, found[0] * 2)


def rate(per_s: float, unit: str = "") -> str:
    """A number with its prefix: "20.7 GB"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_s >= size * 0.9995:
            return f"{per_s / size:.3g} {letter}{unit}"
    return f"{per_s:.3g} {unit}".rstrip()


def stacked(
    palette: Palette,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    kinds: Sequence[str],
    unit: str,
    *,
    ticks: Sequence[float] = (),
    totals: bool = False,
) -> Figure:
    """Stacked bars from top to bottom, a part for each of ``kinds``.

    ``ticks``: a stroke across each bar. ``totals``: the bar's whole length as a number behind it.
    """
    columns = 2 if max(map(len, kinds)) > 12 else 3
    with drawing(palette, 0.75 + 0.25 * len(rows) + 0.2 * -(-len(kinds) // columns)) as (figure, (axis,)):
        left = [0.0] * len(rows)
        for index, kind in enumerate(kinds):
            width = [parts.get(kind, 0.0) for _, parts in rows]
            colour = palette.series[index % len(palette.series)]
            axis.barh(range(len(rows)), width, left=left, height=0.68, label=kind, color=colour)
            left = [a + b for a, b in zip(left, width, strict=True)]
        if ticks:
            ends = [number + side for number in range(len(rows)) for side in (-0.42, 0.42)]
            axis.vlines(ticks, ends[::2], ends[1::2], color=palette.ink, linewidth=1.6)
        if totals:
            for number, (value, tick) in enumerate(zip(left, ticks or left, strict=True)):
                axis.annotate(
                    f"{value:.3g}",
                    (max(value, tick), number),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=palette.ink,
                )
            axis.set_xlim(0, max(*left, *ticks, 1e-9) * 1.14)
        axis.set_yticks(range(len(rows)), [shortened(name, 24) for name, _ in rows])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(unit)
        axis.grid(True, axis="x")
        figure.legend(loc="outside lower center", ncols=columns)
    return figure


def legend_below(figure: Figure) -> None:
    """The legend of the first axes under the figure: two columns where the names are short, and long names cut."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, names)) <= _SHORT else 1
    figure.legend(handles, [shortened(name, _LONG) for name in names], loc="outside lower center", ncols=columns)


def shortened(name: str, most: int) -> str:
    """The name with its middle left out, if it has more than ``most`` characters."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


Box = tuple[float, float, float, float]  # left, low, right, high


def label_points(
    axis: Axes, points: Sequence[tuple[float, float, str]], steps: Sequence[tuple[float, float]], colour: str
) -> None:
    """Put a name beside each point, where it covers least of the other names, the points, the frame and a line.

    ``steps``: the corners of that line, in data coordinates.
    """
    cast("Figure", axis.figure).draw_without_rendering()  # settles where things are
    frame, pt, size = axis.get_window_extent(), axis.figure.dpi / 72, 8.0
    places = [tuple(map(float, axis.transData.transform((x, y)))) for x, y, _ in points]
    corners = [tuple(map(float, axis.transData.transform(corner))) for corner in steps]
    taken: list[Box] = [(x - 5 * pt, y - 5 * pt, x + 5 * pt, y + 5 * pt) for x, y in places]
    taken += [
        (min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for a, b in pairwise(corners)
    ]

    def box_at(at: Sequence[float], name: str, move: tuple[float, float], side: float) -> Box:
        wide, high = 0.6 * size * len(name) * pt, 1.2 * size * pt
        left, low = at[0] + move[0] * pt - side * wide, at[1] + move[1] * pt - high / 2
        return left, low, left + wide, low + high

    def cost(box: Box, move: tuple[float, float]) -> float:
        outside = max(0.0, frame.x0 - box[0], box[2] - frame.x1) + max(0.0, frame.y0 - box[1], box[3] - frame.y1)
        return float(50 * outside + sum(_overlap(box, other) for other in taken) + abs(move[1]))

    moves = [((0.0, y), 0.5) for y in (11, -11, 20, -20, 30, -30)]
    moves += [((x, y), 0.5 - x / 18) for x in (9.0, -9.0) for y in (0, 9, -9, 18, -18)]
    for (x, y, name), at in zip(points, places, strict=True):
        boxes = [(box_at(at, name, move, side), move) for move, side in moves]
        box, move = min(boxes, key=lambda found: cost(*found))
        taken.append(box)
        label = axis.annotate(
            name if len(name) <= 32 else f"{name[:31]}…",
            (x, y),
            xytext=(((box[0] + box[2]) / 2 - at[0]) / pt, move[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
        )
        label.set_in_layout(False)  # its place fits the axes as they are now


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def svg_in_page(plot: Plot) -> str:
    """An SVG element in the page's colours, of a plot drawn in MARKS; its ids begin with the plot's name."""
    text = _svg(plot, {})
    for name, (mark, _, _) in COLOURS.items():
        text = text.replace(mark, f"var(--{name})")
    text = _ID.sub(lambda found: f"{found[1]}{plot.name}-{found[2]}", text[text.index("<svg") :])
    label = plot.title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = re.compile(r'<svg [^>]*viewBox="([^"]+)"[^>]*>')
    return head.sub(lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{label}">', text, count=1)


def svg_file(plot: Plot) -> str:
    """An SVG file of a plot drawn in LIGHT."""
    return _svg(plot, {"Title": plot.title, "Description": plot.caption})


def png_file(plot: Plot) -> bytes:
    """A PNG file, on white, of a plot drawn in LIGHT."""
    from matplotlib import rc_context

    out = io.BytesIO()
    told = {"Software": None, "Title": plot.title, "Description": plot.caption}
    with rc_context(_settings(LIGHT)), _any_script():
        plot.figure.savefig(out, format="png", dpi=_DPI, facecolor="white", metadata=told)
    return out.getvalue()


def css_variables(*, dark: bool) -> str:
    return " ".join(f"--{name}: {colours[2 if dark else 1]};" for name, colours in COLOURS.items())


def _svg(plot: Plot, told: Mapping[str, str]) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    said = dict.fromkeys(("Date", "Creator", "Format", "Type")) | dict(told)
    with rc_context(_settings(LIGHT)), _any_script():  # savefig reads them too
        plot.figure.savefig(out, format="svg", transparent=True, metadata=said)
    return out.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    """Ignore glyphs that the font lacks, such as a name in another script: the SVG's reader has a font for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
