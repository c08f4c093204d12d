"""The help of the tool and of every command, 100 columns wide."""

from __future__ import annotations

import contextlib
import io
import os

from edgecompress.cli import COMMANDS, main

WIDTH = "100"


def texts() -> dict[str, str]:
    """Name of a snapshot -> its text."""
    found = {"help/edgecompress.txt": _printed([]) + "\n" + _printed(["--help"])}
    found |= {f"help/{command}.txt": _printed([command, "--help"]) for command in COMMANDS}
    return found


def _printed(arguments: list[str]) -> str:
    out = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ |= {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(out):
            main(arguments)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return out.getvalue()
