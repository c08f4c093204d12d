"""What a command reads and prints: inputs, results on stdout, notes and progress on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecompress.errors import UsageError
from edgecompress.formats.codec import dumps

_SHOWN_INPUT = 100  # characters of an input that stand above its result


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


def read_inputs(inputs: Sequence[str], file: Path | None, *, what: str = "input", by_line: bool = True) -> list[str]:
    """A command's arguments and its ``--file``, or stdin where there are none.

    A file has one input a line, blank lines left out, or is one as a whole. Raises UsageError if nothing is left.
    """
    texts = list(inputs)
    if file is not None:
        try:
            read = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}", hint="Give a text file in UTF-8.") from error
        texts += read.splitlines() if by_line else [read]
    if not texts and not sys.stdin.isatty():
        read = sys.stdin.read()
        texts = read.splitlines() if by_line else [read]
    if by_line:
        texts = [text for text in texts if text.strip()]
    if not any(text.strip() for text in texts):
        raise UsageError(
            f"there is nothing to run: the {what} is empty", hint='Give one: `edgecompress run BUNDLE "a text"`.'
        )
    return texts


def note(text: str) -> None:
    print(text, file=sys.stderr)


def red(text: str) -> str:
    """On a terminal, unless NO_COLOR is set."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def print_results(task: str, inputs: Sequence[Any], results: Sequence[Any], *, as_json: bool) -> None:
    """What a model made of each input: a value, a row (a dict), or a list of them."""
    if as_json:
        emit_json({"task": task, "results": [{"input": i, "output": o} for i, o in zip(inputs, results, strict=True)]})
        return
    for item, result in zip(inputs, results, strict=True):
        print(shorten(" | ".join(item) if isinstance(item, tuple) else str(item), _SHOWN_INPUT))
        for row in result if isinstance(result, list) else [result]:
            print("  " + (_pairs(row) if isinstance(row, dict) else str(row)))


def _pairs(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


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
