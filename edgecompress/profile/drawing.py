"""Plots as SVG that follows the page's colours, light or dark, and as plain SVG and PNG files; with matplotlib.

A figure is drawn in marks that stand for colours. In a page they become CSS variables, in a file the light ones.
Text stays text, and the same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompress.errors import HostError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which most colour-blind readers can tell apart; lighter ones for a dark page.
COLOURS: Mapping[str, tuple[str, str, str]] = {  # name -> mark, light, dark
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
WIDTH_IN = 5.2
_DPI = 160
_ID = re.compile(r'(id="|href="#|url\(#)([^")]+)')


def _settings(palette: Palette) -> Any:
    """As matplotlib's rcParams has them."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "edgecompress",
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
        "legend.fontsize": 8,
        "lines.linewidth": 1.6,
    }


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure, and in a sentence what it shows."""

    name: str  # of its files
    title: str
    caption: str
    figure: Figure


def require_matplotlib() -> None:
    """Raises HostError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise HostError("plots need matplotlib", way_out="pip install 'edgecompress[report]'") from None


@contextmanager
def drawing(palette: Palette, height_in: float, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure of a phone's width, and its axes from top to bottom."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Made

    with rc_context(_settings(palette)):
        figure = Made(figsize=(WIDTH_IN, height_in), layout="constrained")
        made = figure.subplots(rows, 1, squeeze=False)
        axes = [row[0] for row in made]
        for each in axes:
            each.set_axisbelow(True)
        yield figure, axes


def svg_in_page(plot: Plot) -> str:
    """Of a plot in MARKS: an SVG element in the page's colours; its ids begin with the plot's name."""
    text = _svg(plot)
    for name, (mark, _, _) in COLOURS.items():
        text = text.replace(mark, f"var(--{name})")
    text = _ID.sub(lambda found: f"{found[1]}{plot.name}-{found[2]}", text[text.index("<svg") :])
    label = plot.title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = re.compile(r'<svg [^>]*viewBox="([^"]+)"[^>]*>')
    return head.sub(lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{label}">', text, count=1)


def svg_file(plot: Plot) -> str:
    """Of a plot in the light palette."""
    return _svg(plot)


def png_file(plot: Plot) -> bytes:
    """Of a plot in the light palette, on white."""
    out = io.BytesIO()
    plot.figure.savefig(out, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def css_variables(*, dark: bool) -> str:
    return " ".join(f"--{name}: {colours[2 if dark else 1]};" for name, colours in COLOURS.items())


def _svg(plot: Plot) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context(_settings(LIGHT)):  # what is read when it is written: text as text, and the same ids
        plot.figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return out.getvalue()
