"""A virtual environment for each peer that cannot share ours, from the exact versions in ``benchmarks/peers``.

    python -m benchmarks.peer_venvs --work DIR [NAME …]

torch is installed first, with its exact version: otherwise gigabytes of CUDA come along. An environment is used again
until its list changes. A peer that cannot be installed is a result with pip's own reason, not an exception.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LISTS = Path(__file__).with_name("peers")
PEERS = tuple(sorted(path.stem for path in LISTS.glob("*.txt")))
WITH_OURS = "-r ../../requirements/lock.txt"  # a line of a list: the peer is timed in one process with ours
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Venv:
    """``python`` is None where it could not be made; ``why`` says so."""

    name: str
    python: Path | None
    why: str = ""


def requirements(name: str) -> list[str]:
    """The lines of a list, torch's first."""
    lines = (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return sorted(found, key=lambda line: not line.startswith("torch=="))


def steps(name: str) -> list[list[str]]:
    """What pip is asked for, one after the other."""
    first, *rest = requirements(name)
    asked = [[first], ["-r", str(LISTS / f"{name}.txt")]]
    if WITH_OURS in rest:
        asked.append(["--no-build-isolation", "--no-deps", "--editable", str(ROOT)])
    return asked


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
    asked = [[sys.executable, "-m", "venv", str(folder)], *([str(python), *_PIP, *part] for part in steps(name))]
    for command in asked:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            return Venv(name, None, _reason(done.stderr or done.stdout))
    (folder / ".installed").write_text(_key(name))
    return Venv(name, python)


def _reason(said: str) -> str:
    """pip's first complaint; what comes before and behind it are remarks."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "error"))]
    return (errors or lines or ["it does not say why"])[0][:300]


def _key(name: str) -> str:
    texts = [(LISTS / f"{name}.txt").read_bytes()]
    if WITH_OURS in requirements(name):
        texts.append((ROOT / "requirements" / "lock.txt").read_bytes())
    return hashlib.sha256(b"".join(texts)).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; all unless given")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(PEERS)):
        parser.error(f"no peer named {', '.join(unknown)}; known: {', '.join(PEERS)}")
    found = [make(name, options.work.resolve()) for name in options.names or PEERS]
    for venv in found:
        print(f"{venv.name}: {venv.python or f'cannot be installed: {venv.why}'}", flush=True)
    return 0 if all(venv.python for venv in found) else 3


if __name__ == "__main__":
    raise SystemExit(main())
