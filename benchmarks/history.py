"""A page of every stored ratio over time, out of the history of benchmarks/results in git and of what lies there."""

from __future__ import annotations

import html
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.ratios import RESULTS, Ratio, host_of, ratios, read_lines
from edgecompress.profile.drawing import MARKS, Plot, css_variables, drawing, svg_in_page

Point = tuple[str, Ratio]  # when, and what it was then
_MOST_LINES = 6
_STYLE = """body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1.2rem; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .7rem; min-width: 0; }
svg { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
figcaption { font-size: .85rem; } h2 { overflow-wrap: anywhere; }"""


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def history(path: Path) -> list[tuple[str, str]]:
    """(day, text) of every version of a file, the oldest first, and the one that lies there now; no git: that alone."""
    found = []
    try:
        lines = _git(path.parent, "log", "--reverse", "--format=%H %cs", "--", path.name).splitlines()
        for line in lines:
            commit, day = line.split()
            found.append((day, _git(path.parent, "show", f"{commit}:./{path.name}")))
    except (subprocess.CalledProcessError, FileNotFoundError):
        found = []
    now = path.read_text(encoding="utf-8")
    if not found or found[-1][1] != now:
        found.append(("now", now))
    return found


def series(path: Path) -> dict[tuple[Any, ...], list[Point]]:
    """Every ratio of a file, over time; those that were measured on another kind of host than the last are left out."""
    made: dict[tuple[Any, ...], list[Point]] = defaultdict(list)
    versions = [(day, read_lines(text)) for day, text in history(path)]
    last = host_of(versions[-1][1])
    for day, rows in versions:
        if host_of(rows) == last:
            for key, ratio in ratios(rows).items():
                made[key].append((day, ratio))
    return made


def plots(folder: Path) -> dict[str, list[Plot]]:
    """File -> plots, of a few ratios each."""
    found: dict[str, list[Plot]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = list(series(path).values())
        parts = [lines[i : i + _MOST_LINES] for i in range(0, len(lines), _MOST_LINES)]
        found[path.stem] = [_plot(f"{path.stem}-{number}".replace("_", "-"), part) for number, part in enumerate(parts)]
    return {name: made for name, made in found.items() if made}


def _plot(name: str, lines: list[list[Point]]) -> Plot:
    with drawing(MARKS, 2.2 + 0.2 * len(lines)) as (figure, (axis,)):
        days = sorted({day for line in lines for day, _ in line}, key=lambda day: (day == "now", day))
        for index, line in enumerate(lines):
            colour = MARKS.series[index % len(MARKS.series)]
            at = [days.index(day) for day, _ in line]
            axis.plot(
                at, [r.median for _, r in line], color=colour, marker="o", markersize=4, label=line[-1][1].title[-90:]
            )
            axis.vlines(at, [r.p10 for _, r in line], [r.p90 for _, r in line], color=colour, alpha=0.5)
        axis.set_xticks(range(len(days)), days, fontsize=7)
        axis.set_ylabel("ratio")
        axis.set_ylim(bottom=0)
        axis.grid(True, axis="y")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=6)
    return Plot(name=name, title=name, caption="Medians of paired ratios, with p10 to p90.", figure=figure)


def write_page(output: Path, folder: Path = RESULTS) -> Path:
    """Beside it, then renamed."""
    parts = []
    for name, made in plots(folder).items():
        figures = "".join(
            f"<figure>{svg_in_page(plot)}<figcaption>{html.escape(plot.caption)}</figcaption></figure>" for plot in made
        )
        parts.append(f"<h2>{html.escape(name)}</h2><div class=plots>{figures}</div>")
    light = f":root {{ {css_variables(dark=False)} --paper: #fff; --card: #f5f7f9; }}"
    inverse = f":root {{ {css_variables(dark=True)} --paper: #12171e; --card: #1b222b; }}"
    style = f"<style>{light}@media (prefers-color-scheme: dark) {{ {inverse} }}{_STYLE}</style>"
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edgecompress: ratios over time</title>{style}<main><h1>Ratios over time</h1>"
        "<p>Each file of benchmarks/results, on the kind of machine that it was measured on last.</p>"
        f"{''.join(parts)}</main></html>"
    )
    part = output.with_name(f".{output.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(output)
    return output
