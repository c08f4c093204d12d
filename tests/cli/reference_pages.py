"""The part of docs/reference that is generated: ``python -m tests.cli.reference_pages`` writes it."""

from __future__ import annotations

from pathlib import Path

from edgecompress import errors
from edgecompress.errors import EdgeCompressError

EXIT_CODES = Path(__file__).parent.parent.parent / "docs" / "reference" / "exit-codes.md"

_HEAD = """# Exit codes

Every command ends with one of these codes. With `--json` an error's document has the code and the class too: see
[JSON output](json.md). In Python the same classes are raised; all derive from `edgecompress.errors.EdgeCompressError`,
and `exit_code` is an attribute of each.

| code | meaning |
|---|---|
"""

MEANINGS = {
    0: "done",
    2: "usage or input: a flag, a path, a checkpoint, a recipe, a text",
    3: "environment: a package, a CPU feature, a GPU, a device, a network",
    4: "the quality budget is missed",
    6: "the provenance policy refuses the licence terms",
    7: "the bundle is not valid, or its verification failed",
    70: "a defect in edgecompress",
    130: "interrupted by Ctrl-C or SIGTERM",
}


def exit_codes() -> str:
    """The page, from the classes of :mod:`edgecompress.errors`."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EdgeCompressError)]
    lines = [f"| {code} | {meaning} |" for code, meaning in MEANINGS.items()]
    parts = [_HEAD + "\n".join(lines), "## Errors", "| code | class | raised when |\n|---|---|---|"]
    rows = []
    for each in sorted(classes, key=lambda each: (each.exit_code, each.__name__)):
        if each is not EdgeCompressError:
            summary = " ".join((each.__doc__ or "").split("\n\n")[0].split())
            rows.append(f"| {each.exit_code} | `{each.__name__}` | {summary} |")
    return "\n\n".join(parts) + "\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    EXIT_CODES.write_text(exit_codes(), encoding="utf-8")
