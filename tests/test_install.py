"""Every extra can be installed on every platform that is promised, and the wheel works on every Python at hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.installing import PLATFORMS, PYTHONS, ROOT, SOURCE_ONLY, ResolutionError, build_wheel, extras, resolve, uv
from tests.serve.encoder_bundle import encoder_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def index() -> None:
    """Skips where no package index can be reached; asked once, and only for a test that needs it."""
    try:
        resolve((), PLATFORMS["x86-64 Linux"], "3.11")
    except ResolutionError as error:
        if re.search(r"dns error|error sending request|Failed to fetch|Connection", str(error)):
            pytest.skip("no package index can be reached")


needs_index = pytest.mark.usefixtures("index")


def pythons() -> dict[str, str]:
    """Minor version -> an interpreter that really starts, of those that are promised."""
    found = {}
    for minor in PYTHONS:
        done = subprocess.run(
            [uv(), "python", "find", "--no-python-downloads", "--no-project", minor], capture_output=True, text=True
        )
        if done.returncode == 0:
            found[minor] = done.stdout.strip()
    return found


@needs_index
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_all_extras_resolve_together_to_wheels(platform: str, python: str) -> None:
    """What fits all of them fits each of them."""
    found = resolve([name for name in extras() if name != SOURCE_ONLY], PLATFORMS[platform], python)
    assert any(line.startswith("torch==2.13.") for line in found)
    assert not any(line.startswith("onnxruntime-gpu==") for line in found), (
        "beside onnxruntime they overwrite each other"
    )


@needs_index
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_builder_of_rtx_engines_resolves_where_it_exists(platform: str) -> None:
    names = [line.partition("==")[0] for line in resolve([SOURCE_ONLY], PLATFORMS[platform], "3.11")]
    assert ("tensorrt-rtx-cu13-libs" in names) == platform.startswith("x86-64")


@needs_index
def test_a_wrong_range_does_not_resolve(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text().replace('"numpy>=2.0,<3"', '"numpy>=2.0,<2.0.0"')
    (tmp_path / "pyproject.toml").write_text(text)
    for name in ("edgecompress/version.py", "README.md", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    with pytest.raises(ResolutionError, match="numpy"):
        resolve((), PLATFORMS["x86-64 Linux"], "3.11", tmp_path / "pyproject.toml")


def test_the_table_of_extras_in_the_docs_is_complete() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == set(extras())


def test_classifiers_name_the_pythons_that_are_tested() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert tuple(named) == PYTHONS
    assert project["requires-python"] == f">={PYTHONS[0]}"


@needs_index
@pytest.mark.parametrize("python", PYTHONS)
def test_a_first_hour_with_nothing_but_the_wheel(python: str, built: Path, tmp_path: Path) -> None:
    """In an environment of its own: install, doctor, run, inspect, ten lines of Python; no torch, no compiler."""
    if python not in (here := pythons()):
        pytest.skip(f"no Python {python} here")
    tool = _installed(here[python], built, tmp_path)
    bundle = shutil.copytree(ROOT / "tests" / "schema_1" / "encoder", tmp_path / "tiny.bundle")
    doctor = json.loads(_run(tool, "doctor", "--json", at=tmp_path))
    assert doctor["fit"]
    assert doctor["python"].startswith(python)
    assert not any(package["name"] == "rich" for package in doctor["packages"])
    assert "label" in _run(tool, "run", str(bundle), "A cat.", "A dog.", at=tmp_path)
    assert "encoder" in _run(tool, "inspect", str(bundle), at=tmp_path)
    script = (
        "from edgecompress.runtime import load\n"
        f"with load({str(bundle)!r}) as encoder:\n"
        "    print(len(encoder.predict(['a sentence', 'another'])), 'answers')\n"
    )
    shape = subprocess.run([tool.parent / "python", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert shape.stdout == "2 answers\n", shape.stderr


@needs_index
def test_what_the_base_install_lacks_is_named_with_its_command(built: Path, tmp_path: Path) -> None:
    python = next(iter(pythons().values()))
    tool = _installed(python, built, tmp_path)
    bundle = str(encoder_bundle(tmp_path / "tiny.bundle"))
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text('{"model_type": "bert"}')
    for arguments, extra in (
        (["export", "student", "--target", "local", "-o", "out"], "export"),
        (["serve", bundle], "serve"),
        (["sign", bundle, "--key", "k.pem"], "sign"),
    ):
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert f"pip install 'edgecompress[{extra}]'" in done.stderr


def test_the_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    command = [uv(), "build", "--sdist", "--no-build-isolation", "--out-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "VIRTUAL_ENV": ""})
    archive = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    modules = {name for name in zipfile.ZipFile(built).namelist() if name.startswith("edgecompress/")}
    assert modules <= names


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def _installed(python: str, wheel: Path, folder: Path) -> Path:
    """The tool in an environment that holds the wheel and what it depends on."""
    subprocess.run([uv(), "venv", "--quiet", "--python", python, str(folder / "v")], check=True, capture_output=True)
    environment = {**os.environ, "VIRTUAL_ENV": str(folder / "v")}
    done = subprocess.run(
        [uv(), "pip", "install", "--quiet", str(wheel)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "v" / "bin" / "edgecompress"


def _run(tool: Path, *arguments: str, at: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, cwd=at, env=clean)
    assert done.returncode == 0, done.stderr
    return done.stdout
