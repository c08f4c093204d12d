"""The runtime on a device: which Python there, what goes into its environment, and what is said where it cannot be."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgecompress.devices.install import (
    Runtime,
    _failure,
    check_python,
    find_python,
    plan_environment,
    prepare,
    wheel_parcels,
)
from edgecompress.devices.ssh import Device, connect, parse_address
from edgecompress.devices.wheel import NAME, build_wheel
from edgecompress.errors import DeviceError, UsageError
from edgecompress.version import __version__
from tests.devices.conftest import Loopback

pytestmark = pytest.mark.slow

ROOTS = ("jinja2", "numpy", "onnx", "onnx-ir", "onnxruntime", "tokenizers")


def look(loopback: Loopback) -> tuple[str, str]:
    async def there() -> tuple[str, str]:
        async with connect(parse_address("ssh://device")) as device:
            return await find_python(device)

    return asyncio.run(there())


def pythons(loopback: Loopback, **scripts: str) -> None:
    """The device's PATH holds these, sh and nothing else."""
    folder = loopback.home / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    for name, script in scripts.items():
        (folder / name.replace("_", ".")).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name.replace("_", ".")).chmod(0o755)
    loopback.environment["PATH"] = str(folder)
    loopback.stop()
    loopback.start()


def says(version: str, lacks: str = "[]") -> str:
    return f'echo \'@edgecompress ["/usr/bin/its-python", {version}, "aarch64", {lacks}]\''


def test_the_first_python_that_will_do(loopback: Loopback) -> None:
    pythons(
        loopback, python3=says("[3, 9, 2]"), python3_13="exit 1", python3_12=says("[3, 12, 4]", '["ensurepip"]'),
        python3_11=says("[3, 11, 0]").replace("its", "the"),
    )  # fmt: skip
    assert look(loopback) == ("/usr/bin/the-python", "3.11.0")


@pytest.mark.parametrize(
    ("scripts", "message", "hint"),
    [
        ({}, "device has no python3", r"Install Python 3\.11 or later"),
        ({"python3": "exit 1"}, "device has no python3", r"Install Python 3\.11 or later"),
        ({"python3": says("[3, 9, 2]")}, r"device has Python 3\.9\.2, and edgecompress needs 3\.11", r"python3\.11"),
        (
            {"python3": says("[3, 11, 2]", '["ensurepip"]')},
            "/usr/bin/its-python on device cannot create environments: its module ensurepip is missing",
            r"sudo apt install python3\.11-venv",
        ),
    ],
)
def test_no_python_that_will_do(loopback: Loopback, scripts: dict[str, str], message: str, hint: str) -> None:
    pythons(loopback, **scripts)
    with pytest.raises(DeviceError, match=message) as caught:
        look(loopback)
    assert re.search(hint, caught.value.hint)


def test_a_python_of_the_users_own(loopback: Loopback) -> None:
    def check(path: str) -> Runtime:
        async def there() -> Runtime:
            async with connect(parse_address("ssh://device")) as device:
                return await check_python(device, path)

        return asyncio.run(there())

    assert check(sys.executable) == Runtime(python=sys.executable)
    bare = loopback.home / "a bare python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(DeviceError, match=r"has no edgecompress: ModuleNotFoundError"):
        check(str(bare))
    with pytest.raises(DeviceError, match=r"has no edgecompress: .*[nN]o such file|not found"):
        check("/nowhere/python")
    other = loopback.home / "other"
    other.write_text("#!/bin/sh\necho '@edgecompress 0.0.9'\n")
    other.chmod(0o755)
    with pytest.raises(DeviceError, match=rf"has edgecompress 0\.0\.9, this machine {__version__}"):
        check(str(other))


def test_what_is_wanted_is_what_is_here() -> None:
    found = plan_environment()
    assert sorted(found.packages) == list(ROOTS)
    exact, below, whole = found.attempts
    here = importlib.metadata.version("onnxruntime")
    assert f"onnxruntime=={here}" in exact
    assert f"onnxruntime>=1.24,<2,<={here}" in below
    assert "onnxruntime>=1.24,<2" in whole
    assert any(text.startswith("protobuf==") for text in found.constraints), "what they need is pinned too"
    assert not any(text.startswith(("torch==", "pytest==")) for text in found.constraints)


def test_the_wheel_is_this_edgecompress(tmp_path: Path) -> None:
    """Installed in an environment without anything else, it is there whole."""
    content = build_wheel()
    assert content == build_wheel()
    (tmp_path / NAME).write_bytes(content)
    names = zipfile.ZipFile(tmp_path / NAME).namelist()
    for name in ("edgecompress/py.typed", "edgecompress_targets/raspberry-pi-5.toml", "edgecompress/devices/agent.py"):
        assert name in names
    assert not any("__pycache__" in name or name.startswith("tests/") for name in names)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*command, str(tmp_path / NAME)], check=True)
    script = "import edgecompress, importlib.metadata as m; print(edgecompress.__file__, m.requires('edgecompress'))"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True,
                          cwd=tmp_path, env={"PYTHONPATH": str(site)})  # fmt: skip
    assert done.stdout.startswith(str(site))
    assert "tokenizers" in done.stdout


def hollow_wheel(folder: Path, name: str, version: str) -> None:
    """A package with nothing in it."""
    info = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{info}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}.dist-info/RECORD", "")


def prepared(wheels: Path, shown: list[str]) -> Runtime:
    async def there() -> Runtime:
        async with connect(parse_address("ssh://device")) as device:
            return await prepare(device, wheel_parcels(wheels), shown.append)

    return asyncio.run(there())


def test_an_environment_without_a_network(loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really made: of wheels that were brought, the nearest version where this machine's is not among them."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(UsageError, match="holds no wheels"):
        wheel_parcels(wheels)
    for name in ROOTS:
        hollow_wheel(wheels, name, importlib.metadata.version(name))
    here = importlib.metadata.version("onnxruntime")
    (wheels / f"onnxruntime-{here}-py3-none-any.whl").unlink()
    for version in ("1.24.0", "1.30.1"):
        hollow_wheel(wheels, "onnxruntime", version)
    shown: list[str] = []
    found = prepared(wheels, shown)
    assert found.code is not None
    assert found.remarks == (f"onnxruntime 1.30.1 on the device: this machine's {here} is not available there",)
    version = subprocess.run(
        [found.python, "-m", "edgecompress", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": found.code},
    )
    assert version.stdout == f"edgecompress {__version__}\n"
    assert any("Installing collected packages" in line for line in shown)
    shown.clear()
    assert prepared(wheels, shown) == found
    assert shown == [], "it is made once"
    changed = io.BytesIO(build_wheel())
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr("edgecompress/new.py", "")
    monkeypatch.setattr("edgecompress.devices.install.build_wheel", changed.getvalue)
    again = prepared(wheels, shown)
    assert again.python == found.python, "our own code changes oftener than what it stands on"
    assert again.code != found.code
    assert Path(str(again.code), "edgecompress", "new.py").exists()


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        (
            {"error": "venv", "text": "Error: Command '…ensurepip…' returned non-zero exit status 1.\n"},
            r"python3 on device cannot create an environment: Error: Command",
            "python3-venv",
        ),
        (
            {
                "error": "pip",
                "text": "WARNING: Retrying … NewConnectionError('…')\nERROR: No matching distribution for x",
            },
            "pip on device cannot reach a package index",
            "--wheels DIR",
        ),
        (
            {"error": "pip", "text": "first", "last": "ERROR: No matching distribution found for onnxruntime<2\n"},
            "the runtime cannot be installed on device: No matching distribution found for onnxruntime<2",
            "one for that processor and Python",
        ),
        (
            {"error": "pip", "text": "ERROR: Could not install packages: [Errno 28] No space left on device\n"},
            "the disk of device is full: pip cannot unpack the runtime",
            "Free some space",
        ),
    ],
)
def test_what_pip_says(answer: dict[str, str], message: str, hint: str) -> None:
    error = _failure(answer, Device(None, parse_address("ssh://device")))
    assert re.search(message, error.message)
    assert hint in error.hint


@pytest.mark.skipif("EDGECOMPRESS_TEST_NETWORK" not in os.environ, reason="installs from the package index: a minute")
def test_an_environment_from_the_index(loopback: Loopback, minilm_bundle: Path) -> None:
    from edgecompress.cli import main

    flags = ["--shapes", "1x16", "--percentile", "50", "-o", str(loopback.folder / "out")]
    assert main(["profile", str(minilm_bundle), "--on", "ssh://device", *flags]) == 0
    assert (loopback.folder / "out" / "profile.json").exists()
