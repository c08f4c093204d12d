"""What a change costs: lines of code, the files that an example edits, minutes of tests.

    python -m benchmarks.bench_house --before REVISION --example REVISION --make quick --make test

``--before``: lines of edgecompress/ then and now. ``--example``: a commit that adds something; files that it edits,
apart from those that it adds. ``--make``: minutes of a target, which must pass.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import time
from pathlib import Path

from benchmarks.result_lines import RESULTS, Row, header, write


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def lines_at(revision: str) -> Row:
    """Of every Python file below edgecompress/: all lines, and those that are code."""
    there = _git("ls-tree", "-r", "--name-only", revision, "edgecompress").split()
    texts = [_git("show", f"{revision}:{name}") for name in there if name.endswith(".py")]
    return {
        "files": len(texts),
        "lines": sum(text.count("\n") for text in texts),
        "code_lines": sum(map(_code_lines, texts)),
    }


def _code_lines(text: str) -> int:
    """Those of statements, without imports, docstrings, comments and blank lines."""
    lines = text.splitlines()
    code = {number for number, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        docstring = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


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
