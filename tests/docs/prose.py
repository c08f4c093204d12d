"""The prose that users read, checked: ``python -m tests.docs.prose`` prints what is found; exit code 1 if anything is.

What is read: README, CHANGELOG, CONTRIBUTING, every page of the documentation, and the stored wording of help texts and
errors. Code is taken out first.

Rules: all of proselint's but those of ``_PROSELINT_OFF``, each with its reason; and ``_HOUSE``, fragments of an English
that a native engineer would not write. ``codespell`` checks spelling apart, over everything (pyproject.toml).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.docs.pages import DOCS, ROOT

_PROSELINT_OFF = {
    "typography": "wants curly quotes, dashes, × and é in what is typed into a terminal",
    "hedging": "a caveat about what was measured is meant",
    "annotations": "takes a note for a forgotten remark",
}

_IN_HELP_OFF = "lexical_illusions"  # an option's value stands before its meaning: PORT  port to listen on

_HOUSE = (
    r"\bway out\b",
    r"\bwhosoever\b|\bwhoever\b",
    r"\bis said to be so\b|\bis said so\b",
    r"\bby hand of\b",
    r"\bnothing is run\b",
    r"\bof one's own\b",
    r"\blets? us in\b",
    r"\bwhat was made of (it|them)\b",
    r"\bmakes no sense as given\b",
    r"\bhereof\b|\bthereof\b|\bhenceforth\b|\bwherein\b|\bthereby\b",
    r"\bis not whole\b",
    r"\bin its stead\b",
    r"\bno matter of\b",
    r"\bthat were tried\b",
    r"\bat its side\b",
)

_CODE = re.compile(r"^ *```.*?^ *```$|`[^`]*`|<!--.*?-->|\]\([^)]*\)|^!!!|^\|.*\|$|^#+ .*$", re.DOTALL | re.MULTILINE)
_FINDING = re.compile(r"^(?P<path>.+?):(?P<place>\d+:\d+): (?P<rule>[\w.]+): (?P<message>.*)$")


def texts() -> dict[str, str]:
    """Name -> prose on the lines where it is, with a dash for each character of code, tables and headings."""
    named = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    wording = sorted((ROOT / "tests" / "wording" / "snapshots").rglob("*.txt"))
    found = {}
    for path in (*named, *sorted(DOCS.rglob("*.md")), *wording):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        found[name] = _CODE.sub(lambda code: re.sub(r"[^\n]", "-", code[0]), text) if path.suffix == ".md" else text
    return found


def house_findings(name: str, text: str) -> Iterator[str]:
    for pattern in _HOUSE:
        for found in re.finditer(pattern, text, re.IGNORECASE):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{name}:{line}: not plain English: {found[0]}"


def proselint_findings(found: Mapping[str, str]) -> Iterator[str]:
    """Of all texts in one run, because a start takes longer than a page. Raises RuntimeError if it cannot run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in found.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "proselint", "--output-format", "compact", "check", *found]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"proselint failed: {done.stderr}")
    for line in done.stdout.splitlines():
        if (each := _FINDING.match(line)) is None:
            continue
        name, rule = os.path.relpath(each["path"], os.path.realpath(folder)), each["rule"].partition(".")[0]
        if rule not in _PROSELINT_OFF and not (rule == _IN_HELP_OFF and name.endswith(".txt")):
            yield f"{name}:{each['place']}: {each['rule']}: {each['message']}"


def findings() -> list[str]:
    found = texts()
    return [*(line for each in found.items() for line in house_findings(*each)), *proselint_findings(found)]


def main() -> int:
    found = findings()
    print("\n".join(found) or "the prose is clean")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
