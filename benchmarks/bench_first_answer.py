"""From an empty environment to the first answer, as a user goes: minutes and megabytes, by pip and the wheel.

    python -m benchmarks.bench_first_answer --student FOLDER [--torch torch==2.13.0]

Two journeys: ``runtime`` installs the wheel and runs a bundle that is there; ``export`` installs CPU torch, the wheel
with [export,kernels], exports the student and runs what came out. Minutes of installing depend on the package index
and its cache as much as on anything here, so they are rows of their own; megabytes are those of the environment on
disk. Also resolves every extra alone for every platform and Python (``--no-extras`` skips that).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.minilm import default_checkpoint
from benchmarks.result_lines import RESULTS, Row, header, write
from tests.installing import PLATFORMS, PYTHONS, ResolutionError, build_wheel, extras, resolve

_TEXT = "A cat sits on the mat."


class Journey:
    """One environment, step by step; every step is a row."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.rows = name, folder, []  # type: str, Path, list[Row]
        self._clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self._clean |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        self._step("create the environment", [sys.executable, "-m", "venv", str(folder / "v")])
        self._empty_bytes = _bytes(folder / "v")

    def install(self, *what: str) -> None:
        pip = [str(self.folder / "v/bin/python"), "-m", "pip", "install", "--quiet", "--no-cache-dir", *what]
        shown = " ".join(Path(word).name if os.sep in word else word for word in what)
        self._step(f"pip install {shown}", pip)

    def run(self, *arguments: str) -> None:
        shown = " ".join(Path(word).name if os.sep in word else word for word in arguments)
        self._step(f"edgecompress {shown}", [str(self.folder / "v/bin/edgecompress"), *arguments])

    def end(self) -> list[Row]:
        total = {
            "kind": "journey",
            "name": self.name,
            "minutes": round(sum(row["seconds"] for row in self.rows) / 60, 2),
            "environment_mb": round((_bytes(self.folder / "v") - self._empty_bytes) / 1e6, 1),
        }
        return [*self.rows, total]

    def _step(self, what: str, command: Sequence[str]) -> None:
        began = time.monotonic()
        subprocess.run(command, check=True, cwd=self.folder, env=self._clean, stdout=subprocess.DEVNULL)
        seconds = round(time.monotonic() - began, 1)
        print(f"{self.name}: {what}: {seconds} s", flush=True)
        self.rows.append({"kind": "step", "journey": self.name, "what": what, "seconds": seconds})


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def extras_rows() -> list[Row]:
    rows = []
    for extra in ("", *extras()):
        for title, platform in PLATFORMS.items():
            for python in PYTHONS:
                row: Row = {"kind": "extra", "extra": extra or "base", "platform": title, "python": python}
                try:
                    row["packages"] = len(resolve([extra] if extra else [], platform, python))
                except ResolutionError as error:
                    row["why_not"] = str(error)
                rows.append(row)
        print(f"resolved {extra or 'base'}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="a sentence encoder's folder; default: MiniLM's package")
    parser.add_argument("--torch", default="torch==2.13.0", help="the requirement that gives CPU torch")
    parser.add_argument("--no-extras", action="store_true", help="do not resolve every extra")
    parser.add_argument("--out", type=Path, default=RESULTS / "first_answer.jsonl")
    options = parser.parse_args()
    student = (options.student or default_checkpoint()).resolve()
    lines: list[Row] = [header()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        (folder / "export").mkdir()
        export = Journey("export", folder / "export")
        export.install(options.torch)
        export.install(f"{wheel}[export,kernels]")
        bundle = str(folder / "minilm.bundle")
        export.run("export", str(student), "--target", "local", "--precision", "int8-dynamic", "-o", bundle)
        export.run("run", bundle, _TEXT)
        lines += export.end()
        (folder / "runtime").mkdir()
        runtime = Journey("runtime", folder / "runtime")
        runtime.install(str(wheel))
        runtime.run("run", bundle, _TEXT)
        lines += runtime.end()
    if not options.no_extras:
        lines += extras_rows()
    write(options.out, lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
