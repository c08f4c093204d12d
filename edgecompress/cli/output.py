"""Results on stdout, notes and progress on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecompress.formats.codec import dumps


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def emit_json(value: Any) -> None:
    sys.stdout.write(dumps(value))


def write_json(value: Any, path: Path) -> None:
    """Beside it, then renamed: whole or not at all; said on stderr."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(dumps(value), encoding="utf-8")
    part.replace(path)
    note(f"wrote {path}")


def note(text: str) -> None:
    print(text, file=sys.stderr)


def red(text: str) -> str:
    """On a terminal, unless NO_COLOR is set."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text in aligned columns; numbers to the right."""
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(headers))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("─" * w for w in widths))
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text in ("", "—") or text.strip("x%").replace(".", "", 1).replace("-", "", 1).isdigit()


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A spinner that names the stage, on stderr, only on a terminal; yields the function that names it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting")
        yield lambda text: bar.update(task, description=text)
