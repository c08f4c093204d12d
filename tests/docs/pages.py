"""A page of the documentation as a list of steps: commands, scripts and files, in a reader's order."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_REMARK = re.compile(r"<!-- (?P<name>exit|not run): (?P<value>[^\n]*?) -->\s*$")
_SETUP = re.compile(r"^<!-- setup: (?P<words>[^\n]*?) -->$", re.MULTILINE)
_TITLE = re.compile(r'title="(?P<title>[^"]+)"')


@dataclass(frozen=True, kw_only=True)
class Step:
    """One block that is run or written. ``exit_code`` is that of a block's last command."""

    line: int
    commands: tuple[str, ...] = ()  # of a console block
    shown: tuple[tuple[str, ...], ...] = ()  # the lines of output below each command
    script: str = ""  # of a Python block
    file: str = ""  # what a block with a title is written to
    text: str = ""
    exit_code: int = 0
    not_run: str = ""  # the reason


@dataclass(frozen=True, kw_only=True)
class Page:
    path: Path
    setups: tuple[tuple[str, ...], ...] = ()
    steps: tuple[Step, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


def all_pages() -> list[Page]:
    """The front page, the guide for contributors and everything below docs/."""
    return [read_page(path) for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))]


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    setups = tuple(tuple(found["words"].split()) for found in _SETUP.finditer(text))
    steps = [step for found in _BLOCK.finditer(text) if (step := _step(text, found)) is not None]
    return Page(path=path, setups=setups, steps=tuple(steps))


def _step(text: str, found: re.Match[str]) -> Step | None:
    language, _, options = found["info"].strip().partition(" ")
    indent = len(found["indent"])
    body = "\n".join(line[indent:] for line in found["body"].splitlines()) + "\n"
    line = text.count("\n", 0, found.start()) + 1
    remark = _REMARK.search(text, 0, found.start())
    exit_code = int(remark["value"]) if remark and remark["name"] == "exit" else 0
    not_run = remark["value"] if remark and remark["name"] == "not run" else ""
    if title := _TITLE.search(options):
        return Step(line=line, file=title["title"], text=body)
    if language == "console":
        commands, shown = _commands(body)
        return Step(line=line, commands=commands, shown=shown, exit_code=exit_code, not_run=not_run)
    if language == "python":
        return Step(line=line, script=body, not_run=not_run)
    return None


def _commands(body: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The commands of a block, and the lines shown below each."""
    commands: list[str] = []
    shown: list[list[str]] = []
    going_on = False
    for line in body.splitlines():
        if going_on:
            commands[-1] += "\n" + line
        elif line.startswith("$ "):
            commands.append(line[2:])
            shown.append([])
        elif shown:
            shown[-1].append(line)
            continue
        else:
            continue
        going_on = commands[-1].endswith("\\")
    return tuple(commands), tuple(map(tuple, shown))
