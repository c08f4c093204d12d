"""The wheel is complete and works after installation."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.installing import build_wheel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_code_data_schemas_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("edgecompress", "edgecompress_kernels", "edgecompress_targets"):
        assert f"{package}/py.typed" in names
    assert "edgecompress_kernels/cpu/shim.h" in names
    assert "edgecompress_targets/raspberry-pi-5.toml" in names
    assert "edgecompress/formats/schemas/manifest.schema.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "kernels/", "targets/")) for name in names)


def test_the_wheel_runs_in_a_fresh_environment(wheel: Path, minilm_bundle: Path, tmp_path: Path) -> None:
    """Our wheel is really installed; its dependencies are lent by a path, so that the test needs no network."""
    venv.create(tmp_path / "v", with_pip=True)
    python = tmp_path / "v" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    tool = tmp_path / "v" / "bin" / "edgecompress"
    for arguments in (["--version"], ["targets"], ["doctor"], ["run", str(minilm_bundle), "a sentence"]):
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    where = subprocess.run(
        [python, "-c", "import edgecompress; print(edgecompress.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert str(tmp_path) in where.stdout
