"""The report page, in a real browser where there is one: self-contained, on a phone, in the dark, and accessible."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgecompress.cli import main
from edgecompress.formats.codec import from_jsonable
from edgecompress.profile.drawing import COLOURS, LIGHT, MARKS, svg_file, svg_in_page
from edgecompress.profile.page import write_report
from edgecompress.profile.plots import plots
from edgecompress.types.profile import Profile
from tests.profile import examples

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def found() -> Profile:
    return examples.held(examples.encoder(), 100)


@pytest.fixture(scope="module")
def folder(found: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(found, out)
    return out


def browse(page: Path, *flags: str, width: int = 1200) -> str:
    """The page's document after its scripts have run, in a browser that finds no host."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is here: {', '.join(BROWSERS)}")
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    size = [f"--window-size={width},900", f"--user-data-dir={page.parent / 'browser'}"]
    return subprocess.run(
        [browser, *always, *size, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def asking(page: Path, question: str) -> Path:
    """The page, with a script behind it that writes the answer into the title."""
    text = page.read_text(encoding="utf-8")
    copy = page.with_name("asked.html")
    copy.write_text(text.replace("</body>", f"<script>document.title = JSON.stringify({question})</script></body>"))
    return copy


def answer(document: str) -> object:
    return json.loads(re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1].replace("&quot;", '"'))  # type: ignore[index]


def test_nothing_is_requested_from_a_network(folder: Path, found: Profile) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|url\((?!#|"#)[^)]*\)|@import[^;]*', text)
    assert outside == []
    assert "<script" not in text
    inside = re.search(r'href="data:application/json;base64,([^"]+)"', text)
    assert inside is not None
    assert from_jsonable(Profile, json.loads(base64.b64decode(inside[1]))) == found
    assert len(text) < 600_000, "small enough to mail"


def test_a_screen_reader_finds_its_way(folder: Path) -> None:
    cells = "t.querySelectorAll('thead th[scope=col]').length && [...t.tBodies[0].rows].every(r => r.cells[0].scope)"
    questions = [
        "[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])",
        "[document.querySelectorAll('h1').length, document.documentElement.lang]",
        f"[...document.querySelectorAll('table')].every(t => {cells})",
        "[...document.querySelectorAll('svg')].every(e => e.getAttribute('role') == 'img' && e.ariaLabel)",
        "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0 && e.ariaLabel)",
        "[...document.querySelectorAll('.answers li:not(.note)')].every(e => e.querySelector('.state').innerText)",
    ]
    answered = answer(browse(asking(folder / "report.html", f"[{', '.join(questions)}]")))
    headings, title, heads, images, scrolled, words = answered  # type: ignore[misc]
    assert all(deeper - level <= 1 for level, deeper in pairwise(headings)), "no level is left out"
    assert title == [1, "en"]
    assert heads
    assert images
    assert scrolled
    assert words, "no answer is told by its colour alone"


def test_text_stands_out_from_its_background(folder: Path) -> None:
    """WCAG 2.2, level AA: 4.5 to 1."""
    style = (folder / "report.html").read_text(encoding="utf-8")
    for scheme in (0, 1):
        block = re.findall(r":root \{([^}]*)\}", style)[scheme]
        colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for name in ("ink", "soft", "bad", "s1", "s3", "s5"):
            for below in ("paper", "card"):
                assert contrast(colours[name], colours[below]) >= 4.5, (name, below, scheme)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_browser_shows_it_whole_on_a_phone(folder: Path) -> None:
    question = "[document.documentElement.scrollWidth <= window.innerWidth, "
    question += "document.querySelectorAll('figure svg').length, "
    question += "[...document.querySelectorAll('figure svg')].every(e => e.getBoundingClientRect().height > 50), "
    question += "document.querySelectorAll('tbody tr').length > 10, window.innerWidth]"
    fits, figures, drawn, rows, width = answer(browse(asking(folder / "report.html", question), width=360))  # type: ignore[misc]
    assert fits
    assert figures == 7
    assert drawn
    assert rows
    assert width <= 500  # some browsers have no narrower window


def test_a_dark_scheme_changes_page_and_plots(folder: Path) -> None:
    question = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('figure svg "
    question += "[style*=\"--ink\"]')).fill + getComputedStyle(document.querySelector('figure svg text')).fill]"
    page = asking(folder / "report.html", question)
    light, dark = (answer(browse(page, f"--blink-settings=preferredColorScheme={scheme}")) for scheme in (1, 0))
    assert light[0] == "rgb(255, 255, 255)"  # type: ignore[index]
    assert dark[0] != light[0]  # type: ignore[index]
    assert dark[1] != light[1]  # type: ignore[index]


def test_names_are_escaped(found: Profile, tmp_path: Path) -> None:
    bad = "</script><script>document.title='\"harm\"'</script><img src=x onerror=alert(1)>"
    host = replace(found.host, cpu=bad)
    tried = tuple(replace(row, precision=bad, verdict=bad) for row in found.tried)
    said = {"bundle": bad, "name": bad, "terms": bad, "fidelity": bad, "remarks": (bad,)}
    odd = replace(found, host=host, tried=tried, **said)  # type: ignore[arg-type]
    page = write_report(odd, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<script>document.title=" not in text
    assert "<img" not in text
    assert answer(browse(asking(page, "document.images.length"))) == 0


def test_a_bundle_that_was_never_verified_is_marked_red(found: Profile, tmp_path: Path) -> None:
    page = write_report(replace(found, verified=False), tmp_path)
    question = "getComputedStyle(document.querySelector('#unverified .state')).color"
    red, green, blue = map(int, re.findall(r"\d+", str(answer(browse(asking(page, question))))))
    assert red > 2 * max(green, blue)
    assert 'id="unverified"' not in write_report(found, tmp_path / "verified").read_text(encoding="utf-8")


def test_what_was_not_measured_is_named_and_not_drawn(found: Profile, tmp_path: Path) -> None:
    bare = replace(
        found, operators=(), peaks=(), tried=(), measurements=(), remarks=("operators are not measurable here",)
    )
    text = write_report(bare, tmp_path).read_text(encoding="utf-8")
    assert plots(bare, LIGHT) == []
    assert "<figure" not in text
    assert "Operators are not measured: operators are not measurable here." in text
    assert "The export tried one precision" in text
    assert "<h2>Latency</h2>" not in text


def test_plots_are_the_same_bytes_and_follow_the_page(found: Profile) -> None:
    for first, again in zip(plots(found, MARKS), plots(found, MARKS), strict=True):
        drawn = svg_in_page(first)
        assert drawn == svg_in_page(again)
        assert "var(--ink)" in drawn
        assert not any(mark in drawn for mark, _, _ in COLOURS.values())
        ElementTree.fromstring(drawn.replace("xlink:href", "href"))
    for plot in plots(found, LIGHT):
        assert "var(--" not in svg_file(plot)
        assert not any(mark in svg_file(plot) for mark, _, _ in COLOURS.values())
        assert plot.caption.endswith(".")
        labelled = [axis for axis in plot.figure.axes if axis.get_xlabel()]
        assert labelled, plot.name


def test_without_matplotlib_the_json_is_there_and_why(
    minilm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = ["--shapes", "1x16", "--percentile", "50", "--no-cold-start", "--no-operators"]
    assert main(["profile", str(minilm_bundle), *flags, "-o", str(tmp_path / "r")]) == 0
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["profile.json"]
    assert "plots need matplotlib (pip install 'edgecompress[report]')" in capsys.readouterr().err
