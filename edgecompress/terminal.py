"""A command's inputs and output: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from edgecompress.errors import UsageError
from edgecompress.formats.codec import dumps

_SHOWN_INPUT = 100  # characters of an input that are printed above its result
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "|/-\\"
_FRAME_S = 0.2  # slow, since a profile is measured meanwhile
_stage_line: _StageLine | None = None


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def emit_json(value: Any) -> None:
    sys.stdout.write(dumps(value))


def write_json(value: Any, path: Path) -> None:
    """Write a file whole or not at all, and note it on stderr."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(dumps(value), encoding="utf-8")
    part.replace(path)
    note(f"wrote {path}")


def read_inputs(inputs: Sequence[str], file: Path | None, *, what: str = "input", by_line: bool = True) -> list[str]:
    """Inputs from a command's arguments and its ``--file``, or from stdin if there are none.

    A file has one input per line, blank lines skipped, or is one input (``by_line=False``). Raises UsageError if a file
    cannot be read or there is no input.
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
        raise UsageError(f"the {what} is empty", hint='Give one: `edgecompress run BUNDLE "a text"`.')
    return texts


def note(text: str) -> None:
    if _stage_line is not None:
        _stage_line.print(text)
    else:
        print(text, file=sys.stderr)


def red(text: str) -> str:
    """In red on a terminal, unless NO_COLOR is set."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def print_results(task: str, inputs: Sequence[Any], results: Sequence[Any], *, as_json: bool) -> None:
    """Print the result of each input: a value, a row (a dict), or a list of them."""
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
    """Yield a function that names the current stage, shown with the elapsed time on stderr if that is a terminal."""
    global _stage_line
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    line = _StageLine(sys.stderr)
    _stage_line = line
    try:
        yield line.show
    finally:
        _stage_line = None
        line.close()


class _StageLine:
    """One line that is rewritten in place: a spinner, the stage, the elapsed time. Needs no terminal escapes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = "starting"
        self._began = time.monotonic()
        self._width = 0  # of what is on the line now
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._encoding = stream.encoding or "ascii"
        self._frames = _FRAMES if _encodes(_FRAMES, self._encoding) else _ASCII_FRAMES
        self._thread = threading.Thread(target=self._spin, name="edgecompress-progress", daemon=True)
        self._thread.start()

    def show(self, stage: str) -> None:
        self._stage = stage

    def print(self, text: str) -> None:
        """Write a line of its own above the stage."""
        with self._lock:
            self._write("")
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._write("")

    def _spin(self) -> None:
        for frame in itertools.cycle(self._frames):
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            with self._lock:
                self._write(f"{frame} {self._stage} {minutes}:{seconds:02}")
            if self._closed.wait(_FRAME_S):
                return

    def _write(self, text: str) -> None:
        """Replace the line. A terminal that is gone must not end the run."""
        text = shorten(" ".join(text.split()), shutil.get_terminal_size().columns - 1)
        text = text.encode(self._encoding, "replace").decode(self._encoding)
        with suppress(OSError, ValueError):
            self._stream.write(f"\r{' ' * self._width}\r{text}")
            self._stream.flush()
        self._width = len(text)


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
