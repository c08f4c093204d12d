"""What can be installed where: resolved by uv for platforms that need not be here."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]

PLATFORMS = {
    "x86-64 Linux": "x86_64-unknown-linux-gnu",
    "aarch64 Linux": "aarch64-unknown-linux-gnu",
    "macOS on Apple silicon": "aarch64-apple-darwin",
    "x86-64 Windows": "x86_64-pc-windows-msvc",
}
"""Title -> uv's name."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

SOURCE_ONLY = "tensorrt-rtx"
"""The extra whose packages have no wheels, but for those with the libraries that they name."""

_ITS_WHEELS = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")

_DEVELOPMENT = ("test", "docs", "dev")


def uv() -> str:
    from uv import find_uv_bin

    return str(find_uv_bin())


def extras(pyproject: Path = ROOT / "pyproject.toml") -> tuple[str, ...]:
    """Those for users."""
    with pyproject.open("rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    return tuple(name for name in declared if name not in _DEVELOPMENT)


def resolve(names: Iterable[str], platform: str, python: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """The exact versions ("numpy==2.3.1") of the base install with these extras, all of them wheels.

    Raises ResolutionError.
    """
    names = tuple(names)
    command = [uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    if SOURCE_ONLY in names:
        command += [word for name in _ITS_WHEELS for word in ("--only-binary", name)]
    else:
        command += ["--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python, str(pyproject)]
    command += [word for name in names for word in ("--extra", name)]
    # onnxruntime's wheels for macOS are built for 14 and later
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=pyproject.parent)
    if done.returncode:
        raise ResolutionError(" ".join(done.stderr.split()))
    return [line for line in done.stdout.splitlines() if "==" in line]


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel in ``folder``."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


class ResolutionError(Exception):
    """No set of versions fits; the message is uv's."""
