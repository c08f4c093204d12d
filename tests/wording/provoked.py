"""Errors as a user meets them: each command line is run for real, in a folder of bundles and checkpoints."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgecompress.cli import main
from edgecompress.errors import EdgeCompressError
from tests.wording.templates import ROOT, Site, sites
from tests.wording.world import build

COMMAND_LINES = Path(__file__).parent / "command_lines.txt"
"""One a line, without ``edgecompress``, after NAME=value for the environment; lines that begin with # group them."""

_SETTINGS = {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_UNSET = ("OPENAI_API_KEY", "HF_TOKEN", "EDGECOMPRESS_TRACEBACK", "EDGECOMPRESS_KEY_PASSWORD", "XDG_CACHE_HOME")


_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Outcome:
    """What a command line printed on stderr and how it ended. ``sites``: where its errors were made."""

    line: str
    code: int
    text: str
    sites: frozenset[Site]


def command_lines() -> list[str]:
    lines = COMMAND_LINES.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def provoke() -> list[Outcome]:
    """Run all of them in this process, one after the other."""
    with tempfile.TemporaryDirectory() as temporary, _environment(Path(temporary) / "home"):
        folder = Path(temporary).resolve() / "work"
        folder.mkdir()
        build(folder)
        before = Path.cwd()
        os.chdir(folder)
        try:
            return [_run(line, folder) for line in command_lines()]
        finally:
            os.chdir(before)


def text(outcomes: list[Outcome]) -> str:
    """The stored snapshot."""
    shown = []
    for each in outcomes:
        set_first = _ASSIGNMENT.match(each.line)
        prefix, line = (set_first[0] + " ", each.line[set_first.end() + 1 :]) if set_first else ("", each.line)
        shown.append(f"$ {prefix}edgecompress {line}\n{each.text}[exit {each.code}]\n")
    return "\n".join(shown)


def provoked_sites(outcomes: list[Outcome]) -> frozenset[Site]:
    return frozenset[Site]().union(*(each.sites for each in outcomes))


def _run(line: str, folder: Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    made: list[tuple[Path, int]] = []
    with _recorded(made), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _no_input():
        words = shlex.split(line)
        changes = dict(word.split("=", 1) for word in itertools.takewhile(_ASSIGNMENT.match, words))
        with _changed(changes):
            code = main(words[len(changes) :])
    found = {site for path, number in made for site in sites() if site.is_error and site.holds(path, number)}
    text = re.sub(r"\bonnxruntime \d[\w.]*", "onnxruntime VERSION", _ours(err.getvalue()))
    for path, name in ((folder, "FOLDER"), (folder.parent, "TMP"), (ROOT, "SOURCE")):
        text = text.replace(str(path), name)
    return Outcome(line=line, code=code, text=text, sites=frozenset(found))


@contextlib.contextmanager
def _changed(changes: Mapping[str, str]) -> Iterator[None]:
    os.environ |= changes
    try:
        yield
    finally:
        for name in changes:
            del os.environ[name]


def _ours(text: str) -> str:
    """Without what transformers logs, which runs until a line of ours."""
    kept, theirs = [], False
    for line in text.splitlines(keepends=True):
        theirs = line.startswith("[transformers]") or (theirs and not line.startswith("edgecompress: "))
        if not theirs:
            kept.append(line)
    return "".join(kept)


@contextlib.contextmanager
def _recorded(made: list[tuple[Path, int]]) -> Iterator[None]:
    """Note where each error is constructed."""
    original = EdgeCompressError.__init__

    def init(self: EdgeCompressError, message: str, *, hint: str = "") -> None:
        frame = sys._getframe(1)
        made.append((Path(frame.f_code.co_filename), frame.f_lineno))
        original(self, message, hint=hint)

    EdgeCompressError.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        EdgeCompressError.__init__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _environment(home: Path) -> Iterator[None]:
    before = dict(os.environ)
    home.mkdir()
    os.environ |= _SETTINGS | {"HOME": str(home)}
    for name in _UNSET:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _no_input() -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO("")
    try:
        yield
    finally:
        sys.stdin = before
