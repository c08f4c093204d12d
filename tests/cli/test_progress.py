"""The stage line on stderr: on a terminal only, removed at the end, and readable in every encoding."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from edgecompress import terminal


class Screen(io.TextIOWrapper):
    """A terminal, and what is visible on it once every carriage return has been followed."""

    def __init__(self, encoding: str) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, newline="")

    def isatty(self) -> bool:
        return True

    def written(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode(self.encoding)

    def lines(self) -> list[str]:
        shown = []
        for line in self.written().split("\n"):
            cells: list[str] = []
            for part in line.split("\r"):
                cells[: len(part)] = part
            shown.append("".join(cells).rstrip())
        return shown


@pytest.fixture
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen(getattr(request, "param", "utf-8"))
    # Not sys.stderr itself, which pytest's capture sets anew after the fixtures.
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=found))
    return found


def shown_within(screen: Screen, text: str, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text in screen.written():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("screen", ["utf-8", "ascii"], indirect=True)
def test_the_stage_is_shown_and_removed(screen: Screen) -> None:
    with terminal.progress() as show:
        show("capture\nof 2 × 3")
        assert shown_within(screen, "capture of 2 × 3 0:0" if screen.encoding == "utf-8" else "capture of 2 ? 3 0:0")
    assert screen.lines() == [""]


def test_a_note_stands_on_its_own_line(screen: Screen) -> None:
    with terminal.progress() as show:
        show("a long name of a stage")
        assert shown_within(screen, "a long name of a stage")
        terminal.note("short")
    assert screen.lines() == ["short", ""]


def test_a_long_stage_stays_on_one_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with terminal.progress() as show:
        show("x" * 100)
        assert shown_within(screen, "x…")
    assert max(len(part) for part in screen.written().split("\r")) == 19


def test_the_line_is_removed_when_the_run_fails(screen: Screen) -> None:
    def run() -> None:
        with terminal.progress() as show:
            show("measure")
            assert shown_within(screen, "measure")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert screen.lines() == [""]


def test_a_terminal_that_is_closed_does_not_end_the_run(screen: Screen) -> None:
    with terminal.progress() as show:
        assert shown_within(screen, "starting")
        screen.close()
        show("measure")


def test_nothing_is_drawn_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    with terminal.progress() as show:
        show("capture")
    assert capfd.readouterr() == ("", "")


def test_the_package_rich_is_not_needed() -> None:
    script = "import sys; sys.modules['rich'] = None\n"
    script += "import edgecompress.terminal as t; sys.stderr.isatty = lambda: True\n"
    script += "with t.progress() as show: show('x')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
