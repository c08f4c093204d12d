"""The page of a profile, in a real browser where there is one: whole without a network, on a phone and in the dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgecompress.cli import main
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.profile import read_profile
from edgecompress.profile.drawing import COLOURS, LIGHT, MARKS, svg_file, svg_in_page
from edgecompress.profile.page import write_report
from edgecompress.profile.plots import plots
from edgecompress.types.profile import Profile, Tried

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--shapes", "1x16,1x32,2x16", "--threads", "1,2", "--percentile", "50", "--no-cold-start"]
TRIED = (
    Tried(precision="fp32", quality="mean cosine", value=1.0, ms=9, chosen=False),
    Tried(precision="int8-dynamic", quality="mean cosine", value=0.998, ms=3, chosen=True),
)


@pytest.fixture(scope="module")
def folder(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main(["profile", str(minilm_bundle), *FLAGS, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> Profile:
    return replace(read_profile(folder), tried=TRIED)


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


def test_the_folder_has_page_plots_and_json(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"profile.json", "report.html", "plots"}
    plots_there = {path.name for path in (folder / "plots").iterdir()}
    for name in ("histogram", "cdf", "lengths", "stages", "layers", "roofline"):
        assert {f"{name}.svg", f"{name}.png"} <= plots_there
        ElementTree.parse(folder / "plots" / f"{name}.svg")
        assert (folder / "plots" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_is_asked_of_a_network(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    without_json = text[: text.index('<script type="application/json"')]
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|url\((?!#|"#)[^)]*\)|@import[^;]*', without_json)
    assert outside == []
    inside = json.loads(text[text.index('id="profile">') + 13 : text.rindex("</script>")])
    assert from_jsonable(Profile, inside) == read_profile(folder)


def test_a_browser_shows_it_whole_on_a_phone(folder: Path) -> None:
    question = "[document.documentElement.scrollWidth <= window.innerWidth, "
    question += "document.querySelectorAll('figure svg').length, "
    question += "[...document.querySelectorAll('figure svg')].every(e => e.getBoundingClientRect().height > 50), "
    question += "document.querySelectorAll('tbody tr').length > 10, window.innerWidth]"
    fits, figures, drawn, rows, width = answer(browse(asking(folder / "report.html", question), width=360))  # type: ignore[misc]
    assert fits
    assert figures >= 6
    assert drawn
    assert rows
    assert width <= 500  # some browsers have no narrower window


def test_the_dark_changes_page_and_plots(folder: Path) -> None:
    question = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('figure svg "
    question += "[style*=\"--ink\"]')).fill + getComputedStyle(document.querySelector('figure svg text')).fill]"
    page = asking(folder / "report.html", question)
    light, dark = (answer(browse(page, f"--blink-settings=preferredColorScheme={scheme}")) for scheme in (1, 0))
    assert light[0] == "rgb(255, 255, 255)"  # type: ignore[index]
    assert dark[0] != light[0]  # type: ignore[index]
    assert dark[1] != light[1]  # type: ignore[index]


def test_names_do_no_harm(found: Profile, tmp_path: Path) -> None:
    bad = "</script><script>document.title='\"harm\"'</script><img src=x onerror=alert(1)>"
    host = replace(found.host, cpu=bad)
    odd = replace(
        found, bundle=bad, name=bad, host=host, remarks=(bad,), tried=(replace(TRIED[0], precision=bad), TRIED[1])
    )
    page = write_report(odd, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<script>document.title=" not in text
    assert "<img" not in text
    assert answer(browse(asking(page, "document.images.length"))) == 0


def test_one_that_was_never_verified_is_said_in_red(found: Profile, tmp_path: Path) -> None:
    page = write_report(replace(found, verified=False), tmp_path)
    question = "getComputedStyle(document.getElementById('unverified')).color"
    red, green, blue = map(int, re.findall(r"\d+", str(answer(browse(asking(page, question))))))
    assert red > 2 * max(green, blue)
    assert 'id="unverified"' not in write_report(found, tmp_path / "verified").read_text(encoding="utf-8")


def test_what_was_not_measured_is_said_and_not_drawn(found: Profile, tmp_path: Path) -> None:
    bare = replace(
        found, operators=(), peaks=(), tried=(), measurements=(), remarks=("operators are not measurable here",)
    )
    text = write_report(bare, tmp_path).read_text(encoding="utf-8")
    assert plots(bare, LIGHT) == []
    assert "<figure" not in text
    assert "Not measured: operators are not measurable here." in text
    assert "The export tried one precision" in text
    assert "Energy: not measurable here." in text


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
