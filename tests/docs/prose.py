"""The prose that users read, checked: ``python -m tests.docs.prose`` prints what is found; exit code 1 if anything is.

What is read: README, CHANGELOG, CONTRIBUTING, every page of the documentation, and the stored wording of help texts and
errors. Code is taken out first.

Rules: all of proselint's but those of ``_PROSELINT_OFF``, each with its reason; and ``_HOUSE``, fragments of an English
that a native engineer would not write. ``codespell`` checks spelling apart, over everything (pyproject.toml).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import DOCS, ROOT

_PROSELINT_OFF = {
    "typography": "wants typographic quotes, dashes and × in what is typed into a terminal",
    "hedging": "a caveat about what was measured is meant",
    "annotations": "reads 'note:' and 'not yet' as left-over remarks",
}

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

_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


def texts() -> dict[str, str]:
    """Name -> prose without its code, with the lines where they were."""
    named = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    pages = [*named, *sorted(DOCS.rglob("*.md"))]
    wording = sorted((ROOT / "tests" / "wording").rglob("*.txt"))
    found = {}
    for path in (*pages, *wording):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        found[name] = _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text) if path.suffix == ".md" else text
    return found


def house_findings(name: str, text: str) -> Iterator[str]:
    for pattern in _HOUSE:
        for found in re.finditer(pattern, text, re.IGNORECASE):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{name}:{line}: not plain English: {found[0]}"


def proselint_findings(name: str, text: str, config: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "proselint", "--config", str(config), "--output-format", "compact", "check"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"proselint failed: {done.stderr}")
    yield from (f"{name}:{line.removeprefix('<stdin>:')}" for line in done.stdout.splitlines() if line.strip())


def findings(folder: Path) -> list[str]:
    """``folder`` takes proselint's configuration."""
    config = folder / "proselint.json"
    config.write_text(json.dumps({"checks": dict.fromkeys(_PROSELINT_OFF, False)}))
    return [
        line
        for name, text in texts().items()
        for line in (*house_findings(name, text), *proselint_findings(name, text, config))
    ]


def main() -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = findings(Path(folder))
    print("\n".join(found) or "the prose is clean")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
