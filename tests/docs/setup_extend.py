"""What the pages on extending edgecompress need before their first line."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.docs.setups import setup

ROOT = Path(__file__).parents[2]
LINKED = ("CONTRIBUTING.md", "README.md", "benchmarks", "docs", "kernels", "pyproject.toml", "targets", "tests")


@setup("repository")
def repository(folder: Path) -> None:
    """The repository's files, for commands that run from its root."""
    for name in (*LINKED, "edgecompress"):
        (folder / name).symlink_to(ROOT / name)


@setup("clone")
def clone(folder: Path) -> None:
    """The same, with a copy of ``edgecompress/`` that a page may change; a page's commands run the copy."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    _copy(ROOT / "edgecompress", folder / "edgecompress")


@setup("adder")
def adder(folder: Path, name: str) -> None:
    """The kind of tests/toy_kind as a package of its own, without what only its tests use."""
    _package("toy_kind", folder / name)
    (folder / name / "bundle.py").unlink()


@setup("table")
def table(folder: Path, name: str) -> None:
    """The backend of tests/toy_backend as a package of its own."""
    _package("toy_backend", folder / name)


def _package(toy: str, path: Path) -> None:
    _copy(ROOT / "tests" / toy, path)
    for module in path.glob("*.py"):
        text = module.read_text(encoding="utf-8")
        module.write_text(text.replace(f"tests.{toy}", path.name), encoding="utf-8")


def _copy(source: Path, path: Path) -> None:
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("__pycache__"))
