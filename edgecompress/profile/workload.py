"""Workloads: shapes as a bundle's kind names them, such as 8x128, or the requests of a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edgecompress.errors import UsageError
from edgecompress.kinds import find_kind
from edgecompress.runtime.shapes import MOST_TOKENS
from edgecompress.types.bundle import Manifest
from edgecompress.types.workload import Workload

_TRACE = "trace:"


def workloads_of(manifest: Manifest, text: str | None = None) -> list[Workload]:
    """Parse ``1x16,8x128,trace:requests.jsonl`` as the bundle's kind does; None: the kind's defaults.

    Raises UsageError as :func:`parse_workloads` does.
    """
    kind = find_kind(manifest.kind).profile
    if text is None:
        text = kind.default_workloads(manifest)
    return parse_workloads(text, lambda part: kind.parse(part, manifest))


def parse_workloads(text: str, parse: Callable[[str], Workload]) -> list[Workload]:
    """``parse`` reads one part that is not a trace.

    Raises UsageError that names the part, and for a trace the line and column.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [read_trace(Path(part.removeprefix(_TRACE))) if part.startswith(_TRACE) else parse(part) for part in parts]
    names = [workload.name for workload in found]
    if len(set(names)) < len(names):
        raise UsageError(f"a shape appears twice: {text}", hint="Remove one.")
    return found


def read_trace(path: Path) -> Workload:
    """JSON lines with "text", or "tokens" for a text of that length. Raises UsageError with line and column."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the trace {path} cannot be read: {error}", hint="Give a file of JSON lines.") from error
    requests: list[int | str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}, line {number}, column {error.colno}: {error.msg}",
                hint='Each line is a JSON object such as {"text": "a question"} or {"tokens": 64}.',
            ) from None
        text, tokens = (row.get("text"), row.get("tokens")) if isinstance(row, dict) else (None, None)
        if isinstance(text, str) and text.strip():
            requests.append(text)
        elif isinstance(tokens, int) and not isinstance(tokens, bool) and 1 <= tokens <= MOST_TOKENS:
            requests.append(tokens)
        else:
            raise UsageError(
                f'{path}, line {number}: neither "text" nor "tokens"',
                hint='Each line is a JSON object such as {"text": "a question"} or {"tokens": 64}.',
            )
    if not requests:
        raise UsageError(f"the trace {path} is empty", hint='Give lines such as {"text": "a question"}.')
    return Workload(name=path.name, requests=tuple(requests))
