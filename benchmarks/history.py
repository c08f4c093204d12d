"""A page with every stored ratio over time, from the git history of benchmarks/results and the current files."""

from __future__ import annotations

import html
import subprocess
from collections import defaultdict
from pathlib import Path

from benchmarks.ratios import Key, Ratio, ratios, stored_files, told
from benchmarks.result_lines import RESULTS, parse
from benchmarks.suites import BENCHES, RatioRule
from edgecompress.profile.drawing import MARKS, Plot, css_variables, drawing, legend_below, svg_in_page

Point = tuple[str, Ratio]  # when, and what it was then
Line = list[Point]
_MOST_LINES = 6
_MOST_DAYS = 4  # with ticks
_STYLE = """body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1.2rem; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .7rem; min-width: 0; }
svg { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
figcaption { font-size: .85rem; } h2 { overflow-wrap: anywhere; }"""


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def history(path: Path) -> list[tuple[str, str]]:
    """(day, text) of every version of a file, oldest first, then the present one; without git only that."""
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


def series(path: Path, held: RatioRule) -> dict[tuple[Key, str], Line]:
    """Every drawn ratio of a file over time, on the kind of host that it was measured on last."""
    made: dict[tuple[Key, str], Line] = defaultdict(list)
    versions = [(day, parse(text)) for day, text in history(path)]
    last = versions[-1][1].host_kind
    for day, results in versions:
        if results.host_kind == last:
            for key, ratio in ratios(results, held).items():
                if ratio.field.drawn:
                    made[key].append((day, ratio))
    return made


def plots(folder: Path) -> dict[str, list[Plot]]:
    """File -> plots of a few lines each. A plot's title is what its lines have in common."""
    found: dict[str, list[Plot]] = {}
    for bench in BENCHES.values():
        for path in stored_files(folder, bench) if bench.held else []:
            assert bench.held is not None
            together: dict[str, list[tuple[str, Line]]] = defaultdict(list)
            for (key, name), line in series(path, bench.held).items():
                title = told([part for part in key if part[0] not in bench.held.lines])
                label = told([part for part in key if part[0] in bench.held.lines])
                last_of_a_day = list(dict(line).items())
                together[title].append((", ".join(filter(None, (label, name))), last_of_a_day))
            made = found[path.stem] = []
            for title, lines in together.items():
                for at in range(0, len(lines), _MOST_LINES):
                    made.append(
                        _plot(f"{path.stem}-{len(made)}".replace("_", "-"), title, lines[at : at + _MOST_LINES])
                    )
    return {name: made for name, made in found.items() if made}


def _plot(name: str, title: str, lines: list[tuple[str, Line]]) -> Plot:
    with drawing(MARKS, 2.4 + 0.17 * len(lines)) as (figure, (axis,)):
        days = sorted({day for _, line in lines for day, _ in line}, key=lambda day: (day == "now", day))
        for index, (label, line) in enumerate(lines):
            colour = MARKS.series[index % len(MARKS.series)]
            at = [days.index(day) + 0.05 * (index - len(lines) / 2) for day, _ in line]
            axis.plot(at, [r.median for _, r in line], color=colour, marker="o", markersize=4, label=label)
            axis.vlines(at, [r.low for _, r in line], [r.high for _, r in line], color=colour, alpha=0.5)
        step = -(-len(days) // _MOST_DAYS)
        axis.set_xticks(range(len(days))[::-step][::-1], days[::-step][::-1])  # the last day always has its tick
        axis.set_xlim(-0.5, max(1.0, len(days) - 0.5))
        axis.set_xlabel("day of the commit")
        axis.set_ylabel("ratio")
        axis.set_ylim(bottom=0)
        axis.grid(True, axis="y")
        legend_below(figure)
    return Plot(name=name, title=title, caption=title, figure=figure)


def write_page(output: Path, folder: Path = RESULTS) -> Path:
    """Write the page beside ``output``, then rename it; return its path."""
    parts = []
    for name, made in plots(folder).items():
        figures = "".join(
            f"<figure>{svg_in_page(plot)}<figcaption>{html.escape(plot.caption)}</figcaption></figure>" for plot in made
        )
        parts.append(f"<h2 id={name}>{html.escape(name)}</h2><div class=plots>{figures}</div>")
    light = f":root {{ {css_variables(dark=False)} --paper: #fff; --card: #f5f7f9; }}"
    inverse = f":root {{ {css_variables(dark=True)} --paper: #12171e; --card: #1b222b; }}"
    style = f"<style>{light}@media (prefers-color-scheme: dark) {{ {inverse} }}{_STYLE}</style>"
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edgecompress: ratios over time</title>{style}<main><h1>Ratios over time</h1>"
        "<p>Every file of benchmarks/results, on the kind of machine that it was measured on last. A point is the "
        "median of paired ratios; its stroke runs from p10 to p90.</p>"
        f"{''.join(parts)}</main></html>"
    )
    part = output.with_name(f".{output.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(output)
    return output
