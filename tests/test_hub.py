"""A student by its hub id, from a mirror on this machine, by the real client of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.runtime import load
from tests.distill.lessons import sentence_teacher
from tests.hub_mirror import COMMIT, hub_mirror

pytestmark = pytest.mark.slow

_FAST = ("--precision", "fp32", "--kernels", "none", "--target", "local")


def export(endpoint: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    command = [sys.executable, "-m", "edgecompress", "export", *arguments, *_FAST, "-o", str(folder / "b")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


def test_a_hub_id_is_exported_and_its_commit_recorded(tmp_path: Path) -> None:
    student = sentence_teacher(tmp_path / "student")
    with hub_mirror({"somebody/tiny-MiniLM": student}) as endpoint:
        done = export(endpoint, tmp_path, "somebody/tiny-MiniLM", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert COMMIT in (tmp_path / "b" / "lineage.json").read_text()
    with load(tmp_path / "b") as encoder:
        assert encoder.encode(["a cat"]).shape == (1, 32)


def test_a_hub_id_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with hub_mirror({}) as endpoint:
        done = export(endpoint, tmp_path, "somebody/tiny-MiniLM")
    assert done.returncode == 2
    assert "somebody/tiny-MiniLM" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_download_that_is_cut_off_is_one_clear_error(tmp_path: Path) -> None:
    student = sentence_teacher(tmp_path / "student")
    with hub_mirror({"somebody/tiny-MiniLM": student}, cut_off=True) as endpoint:
        done = export(endpoint, tmp_path, "somebody/tiny-MiniLM")
    assert done.returncode == 3
    assert "somebody/tiny-MiniLM" in done.stderr
    assert "internal error" not in done.stderr
    assert not (tmp_path / "b").exists()
