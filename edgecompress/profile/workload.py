"""What is asked of a bundle: shapes such as 8x128, or the requests of a trace; and real text for either."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from edgecompress.errors import UsageError
from edgecompress.types.bundle import Manifest

_SHAPE = re.compile(r"(\d+)x(\d+)")
_TRACE = "trace:"
DEFAULT_NEW_TOKENS = 32
_MOST_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``lengths``: tokens of each text of a call; a trace has one text a call and goes through ``requests`` in turn."""

    name: str
    lengths: tuple[int, ...] = ()
    requests: tuple[int | str, ...] = ()  # tokens of a text that is made, or the text itself

    @property
    def batch(self) -> int:
        return len(self.lengths) or 1


def default_shapes(manifest: Manifest) -> str:
    """What a bundle is measured with unless something is asked for."""
    if manifest.generation is not None:
        most = manifest.generation.context_length_tokens - DEFAULT_NEW_TOKENS
        return ",".join(dict.fromkeys(f"1x{max(1, min(t, most))}" for t in (128, 1024)))
    if manifest.text is None:
        return "1x0,8x0"
    most = manifest.text.max_length_tokens
    return ",".join(dict.fromkeys(f"{b}x{min(t, most)}" for b, t in ((1, 16), (1, 128), (8, 128))))


def parse_workloads(text: str) -> list[Workload]:
    """``1x16,8x128,trace:requests.jsonl``: texts in a call times tokens of each; of images the batch alone, times 0.

    Raises UsageError naming the part, and for a trace the line and the column.
    """
    found = []
    for part in text.split(","):
        part = part.strip()
        if part.startswith(_TRACE):
            found.append(read_trace(Path(part.removeprefix(_TRACE))))
            continue
        match = _SHAPE.fullmatch(part)
        if match is None:
            raise UsageError(
                f"'{part}' is no shape", hint="Give texts times tokens, such as 1x128 or 8x128, or trace:FILE.jsonl."
            )
        batch, tokens = int(match[1]), int(match[2])
        if not 1 <= batch <= 4096 or tokens > _MOST_TOKENS:
            raise UsageError(f"the shape {part} is out of range", hint="Give 1 to 4096 texts.")
        found.append(Workload(name=part, lengths=(tokens,) * batch))
    names = [workload.name for workload in found]
    if len(set(names)) < len(names):
        raise UsageError(f"a shape is given twice: {text}", hint="Leave one out.")
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
        elif isinstance(tokens, int) and not isinstance(tokens, bool) and 1 <= tokens <= _MOST_TOKENS:
            requests.append(tokens)
        else:
            raise UsageError(
                f'{path}, line {number}: it has neither a "text" nor "tokens"',
                hint='Each line is a JSON object such as {"text": "a question"} or {"tokens": 64}.',
            )
    if not requests:
        raise UsageError(f"the trace {path} is empty", hint='Give lines such as {"text": "a question"}.')
    return Workload(name=path.name, requests=tuple(requests))


@cache
def _prose() -> tuple[str, ...]:
    """Words of real text, the same on every machine with this Python: its own documentation."""
    return tuple(word for topic in topics.values() for word in topic.split() if word.isascii())


def text_of(tokens: int, encode: Callable[[str], Sequence[int]], index: int = 0) -> str:
    """Real text that becomes ``tokens`` tokens or a few more; ``index`` gives another one."""
    words = _prose()
    start = index * 97 % len(words)
    rolled = words[start:] + words[:start]
    low, high = 1, 1
    while len(encode(" ".join(rolled[:high]))) < tokens:
        if high >= len(rolled):
            rolled += rolled
        low, high = high, min(2 * high, len(rolled))
    while low < high:
        middle = (low + high) // 2
        if len(encode(" ".join(rolled[:middle]))) < tokens:
            low = middle + 1
        else:
            high = middle
    return " ".join(rolled[:low])
