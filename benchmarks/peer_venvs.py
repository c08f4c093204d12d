"""A virtual environment for each peer that cannot live beside ours, from the exact versions of ``benchmarks/peers``.

torch goes first and by its exact version: any other way brings gigabytes of CUDA along. What was made is used again
until its list changes; a peer that cannot be installed is an answer, with pip's own reason, and no exception.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LISTS = Path(__file__).with_name("peers")
PEERS = ("optimum", "genai", "llama", "modelopt")
_OPTIONS = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Venv:
    """``python`` is None where it could not be made; ``why`` says so."""

    name: str
    python: Path | None
    why: str = ""


def requirements(name: str) -> list[str]:
    """torch first."""
    lines = (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return sorted(found, key=lambda line: not line.startswith("torch=="))


def ready(name: str, work: Path) -> Path | None:
    """The python of one that is there and up to date."""
    folder = work / "venvs" / name
    stamp = folder / ".installed"
    return folder / "bin" / "python" if stamp.exists() and stamp.read_text() == _key(name) else None


def make(name: str, work: Path) -> Venv:
    """The one that is there, or a new one."""
    if (python := ready(name, work)) is not None:
        return Venv(name, python)
    folder = work / "venvs" / name
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = requirements(name)
    for part in ([wanted[0]], wanted[1:]):
        done = subprocess.run([str(python), *_OPTIONS, *part], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            shutil.rmtree(folder, ignore_errors=True)
            return Venv(name, None, lines[0][:200])
    (folder / ".installed").write_text(_key(name))
    return Venv(name, python)


def _key(name: str) -> str:
    return hashlib.sha256("\n".join(requirements(name)).encode()).hexdigest()
