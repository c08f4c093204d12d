"""What the shape of the code costs whoever changes it: its lines, the files that an example edits, minutes of tests.

    python -m benchmarks.bench_house --before REVISION --example REVISION --make quick --make test

``--before``: lines of edgecompress/ then and now. ``--example``: a commit that adds something; files that it edits,
apart from those that it adds. ``--make``: minutes of a target, which must pass.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

from benchmarks.result_lines import RESULTS, Row, header, write


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def lines_at(revision: str) -> Row:
    """Of every Python file below edgecompress/, with blank ones and comments."""
    there = _git("ls-tree", "-r", "--name-only", revision, "edgecompress").split()
    names = [name for name in there if name.endswith(".py")]
    return {"files": len(names), "lines": sum(_git("show", f"{revision}:{name}").count("\n") for name in names)}


def edits_of(commit: str) -> Row:
    found = [line.split("\t") for line in _git("diff", "--name-status", f"{commit}^", commit).splitlines()]
    return {
        "edited": [names[0] for status, *names in found if status == "M"],
        "added": [names[0] for status, *names in found if status == "A"],
    }


def minutes_of(target: str) -> Row:
    began = time.monotonic()
    code = subprocess.run(["make", target], check=False).returncode
    return {
        "kind": "minutes",
        "target": target,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "exit_code": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a revision")
    parser.add_argument("--example", action="append", default=[], help="a commit")
    parser.add_argument("--make", action="append", default=[], help="a target of the Makefile")
    parser.add_argument("--out", type=Path, default=RESULTS / "house.jsonl")
    options = parser.parse_args()
    rows: list[Row] = [
        {"kind": "lines", "revision": each, **lines_at(each)} for each in (options.before, "HEAD") if each
    ]
    rows += [{"kind": "edits", "commit": each, **edits_of(each)} for each in options.example]
    rows += [minutes_of(each) for each in options.make]
    write(options.out, [header(), *rows])


if __name__ == "__main__":
    main()
