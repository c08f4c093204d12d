"""An aarch64 machine out of packages, without root: qemu-user from Debian, and Debian's Python with onnxruntime inside.

``python -m tests.arm.machine`` (``make arm``) sets it up under ``build/arm`` in about a minute; nothing of the system
changes. Where it cannot be set up, it says why and the tests that need it are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "build" / "arm"
DEBIAN = (
    "qemu-user-static:amd64", "libc6:arm64", "libgcc-s1:arm64", "libstdc++6:arm64", "zlib1g:arm64", "libexpat1:arm64",
    "python3.11-minimal:arm64", "libpython3.11-minimal:arm64", "libpython3.11-stdlib:arm64", "libbz2-1.0:arm64",
    "liblzma5:arm64", "libffi8:arm64", "libssl3:arm64", "libuuid1:arm64",
)  # fmt: skip
ONNXRUNTIME = "onnxruntime==1.27.0"  # 1.32's own start-up ends in an illegal instruction under qemu 7.2
LOCKED = ("numpy", "tokenizers", "jinja2", "markupsafe")
EMULATOR = FOLDER / "host" / "usr" / "bin" / "qemu-aarch64-static"


def packages() -> list[str]:
    """What is installed inside: the versions of requirements/lock.txt, but an onnxruntime that runs in qemu."""
    lines = (REPOSITORY / "requirements" / "lock.txt").read_text().splitlines()
    return [ONNXRUNTIME, *(line for line in lines if line.partition("==")[0].lower() in LOCKED)]


class NotHereError(Exception):
    """The machine cannot be set up; the message says why."""


def ready() -> bool:
    stamp = FOLDER / "ready"
    return stamp.exists() and stamp.read_text() == "\n".join([*DEBIAN, *packages()])


def run(cpu: str, arguments: Sequence[str | Path], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python of the machine, with qemu's ``cpu``: one that lacks a feature has an illegal instruction there."""
    path = f"{REPOSITORY}:{FOLDER / 'site'}"
    command = [EMULATOR, "-cpu", cpu, "-L", FOLDER / "root", "-E", f"PYTHONPATH={path}", "-E", "PYTHONSAFEPATH=1"]
    command += ["-E", "PYTHONDONTWRITEBYTECODE=1", FOLDER / "root" / "usr" / "bin" / "python3.11", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=240, check=False)


def set_up() -> None:
    """Download and unpack what is missing. Raises NotHereError."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise NotHereError(f"{program} is not here: the machine is made of Debian's packages")
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "debs", "root", "host", "site", "wheels"):
        (FOLDER / name).mkdir(parents=True)
    (FOLDER / "state" / "status").touch()
    (FOLDER / "apt.conf").write_text(
        'APT::Architectures { "amd64"; "arm64"; };\nAPT::Sandbox::User "";\n'
        f'Dir::State "{FOLDER}/state";\nDir::State::status "{FOLDER}/state/status";\nDir::Cache "{FOLDER}/cache";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(FOLDER / "apt.conf")}
    _call(["apt-get", "update"], FOLDER, environment)
    _call(["apt-get", "download", *DEBIAN], FOLDER / "debs", environment)
    for package in sorted((FOLDER / "debs").glob("*.deb")):
        arm = package.name.endswith("_arm64.deb")
        _call(["dpkg-deb", "-x", str(package), str(FOLDER / ("root" if arm else "host"))], FOLDER, environment)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest=wheels",
    ]
    _call([*pip, "--only-binary=:all:", "--python-version=3.11", *platforms, *packages()], FOLDER, environment)
    for wheel in sorted((FOLDER / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(FOLDER / "site")
    for name in ("state", "cache", "debs", "wheels"):
        shutil.rmtree(FOLDER / name)
    for other in EMULATOR.parent.glob("qemu-*"):
        if other != EMULATOR:
            other.unlink()
    found = run("cortex-a72", ["-c", "import onnxruntime, platform; print(platform.machine())"])
    if found.stdout.strip() != "aarch64":
        raise NotHereError(f"its Python does not run: {found.stderr.strip()[-300:]}")
    (FOLDER / "ready").write_text("\n".join([*DEBIAN, *packages()]))


def _call(command: Sequence[str], cwd: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "ERROR"))]
        raise NotHereError(f"{' '.join(command[:2])} failed: {'; '.join(lines)[:300] or done.stderr[-300:]}")


if __name__ == "__main__":
    try:
        if not ready():
            set_up()
        print(f"an aarch64 machine is in {FOLDER.relative_to(REPOSITORY)}")
    except NotHereError as reason:
        print(f"no aarch64 machine: {reason}. The tests that run on one will be skipped.")
