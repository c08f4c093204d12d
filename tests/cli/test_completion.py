"""Completion scripts in the shells themselves; zsh and fish where they are installed."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgecompress.cli import COMMANDS, main

CASES = [
    ("edgecompress ins", {"inspect"}),
    ("edgecompress export --precision int4", {"int4", "int4-weights"}),
    ("edgecompress export student --target raspberry", {"raspberry-pi-4", "raspberry-pi-5"}),
    ("edgecompress targets sh", {"show"}),
    ("edgecompress targets show h2", {"h200"}),
    ("edgecompress lineage --format c", {"card", "cyclonedx"}),
    ("edgecompress run --temp", {"--temperature"}),
    ("edgecompress completion f", {"fish"}),
]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"completion.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def test_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("bash", tmp_path, capsys)
    lines = [
        f"source {path}",
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _edgecompress; echo ${COMPREPLY[*]}; }',
    ]
    lines += [f"try {typed}" for typed, _ in CASES]
    lines += ["try edgecompress run ''", "try edgecompress ''"]
    done = subprocess.run(["bash", "-uc", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert found[: len(CASES)] == [expected for _, expected in CASES]
    assert found[-2] == set(), "a bundle: bash completes file names"
    assert found[-1] == {*COMMANDS, "--help", "--version"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("fish", tmp_path, capsys)
    for typed, expected in CASES:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {path}; complete -C '{typed}'"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"HOME": str(tmp_path)},
        )
        assert {line.split("\t")[0] for line in done.stdout.splitlines()} == expected, done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("zsh", tmp_path, capsys)
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        os.environ |= {"HOME": str(tmp_path), "TERM": "dumb"}
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        os.write(terminal, f"source {path}; echo REA''DY\n".encode())
        assert "READY" in read_until(terminal, "READY")
        os.write(terminal, b"edgecompress ins\t")
        assert "inspect" in read_until(terminal, "inspect")
        os.write(terminal, b"\x15edgecompress export --precision int8-d\t")
        assert "int8-dynamic" in read_until(terminal, "int8-dynamic")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def read_until(terminal: int, text: str, seconds: float = 30.0) -> str:
    found, deadline = "", time.monotonic() + seconds
    while text not in found and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            found += os.read(terminal, 65536).decode(errors="replace")
    return found


def test_it_is_the_same_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    assert main(["completion", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "bash", "script": text}


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "shell cannot be 'bsh'. Did you mean 'bash'?" in capsys.readouterr().err
