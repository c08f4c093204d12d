"""Training data: texts, or prompts with a teacher's responses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.distill.endpoint import is_endpoint, parse_endpoint
from edgecompress.errors import UsageError
from edgecompress.types.provenance import ResponseFile

CUT = "length"  # `finish` of a response that was cut off at max_tokens
_SNIFF_BYTES = 8192
_LIKE = 'Each line is {"text": "…"}, or {"prompt": "…", "response": "…"}; a plain text file has one text per line.'
_STORES = (".sqlite", ".sqlite3", ".db")
_JSON_LINES = (".jsonl", ".ndjson", ".json")

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt, as the messages of a conversation, and its response; None: not answered yet."""

    messages: tuple[Message, ...]
    response: str | None
    teacher: str | None = None  # named in the file: openai:URL#MODEL
    cut: bool = False  # the response was cut off at max_tokens
    place: int = field(default=0, compare=False)  # of its line, without blank lines


@dataclass(frozen=True, kw_only=True)
class TeachingData:
    """``texts`` or ``pairs``, never both."""

    name: str
    sha256: str  # of the file
    texts: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    stored: ResponseFile | None = None  # the file that held responses from the start
    empty: int = 0  # responses without text, from `label`; not in ``pairs``

    @property
    def lacking(self) -> int:
        """Prompts without a response."""
        return sum(pair.response is None for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.texts) or len(self.pairs)


def read_data(path: Path) -> TeachingData:
    """Read texts, without duplicates, or pairs. Raises UsageError, with line and column of a malformed line."""
    if path.suffix.lower() in _STORES:
        raise UsageError(
            f"{path} is a store of `edgecompress label`, not a data file",
            hint="Run the same label command with -o FILE.jsonl: it writes the stored responses there.",
        )
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"no data file at {path}", hint=f"Give --data a file. {_LIKE}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason}", hint="Convert it to UTF-8.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=_LIKE) from error
    if "\0" in content[:_SNIFF_BYTES]:
        raise UsageError(f"{path} is binary", hint=_LIKE)
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty", hint=_LIKE)
    digest = hashlib.sha256(raw).hexdigest()
    if path.suffix.lower() not in _JSON_LINES:
        texts = tuple(dict.fromkeys(line.strip() for _, line in lines))
        return TeachingData(name=path.name, sha256=digest, texts=texts)
    found = [_row(line.rstrip("\r"), f"{path}, line {number}", place) for place, (number, line) in enumerate(lines)]
    texts = tuple(dict.fromkeys(row for row in found if isinstance(row, str)))
    pairs = tuple(row for row in found if isinstance(row, Pair) and row.response != "")
    empty = sum(isinstance(row, Pair) and row.response == "" for row in found)
    if texts and pairs:
        number = next(
            n for (n, _), row in zip(lines, found, strict=True) if isinstance(row, str) != isinstance(found[0], str)
        )
        raise UsageError(
            f"{path}, line {number}, column 1: texts and prompts are mixed",
            hint="Use separate files for texts and prompts.",
        )
    if empty and not pairs:
        raise UsageError(f"every response in {path} is empty", hint="Label with a larger --max-tokens.")
    stored = _stored(path.name, digest, pairs)
    return TeachingData(name=path.name, sha256=digest, texts=texts, pairs=pairs, stored=stored, empty=empty)


def _stored(name: str, digest: str, pairs: Sequence[Pair]) -> ResponseFile | None:
    given = [pair for pair in pairs if pair.response is not None]
    if not given:
        return None
    named = sorted({pair.teacher for pair in given if pair.teacher is not None})
    return ResponseFile(name=name, sha256=digest, responses=len(given), teacher=", ".join(named) or None)


def _row(line: str, where: str, place: int) -> str | Pair:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}, column {error.colno}: {error.msg}", hint=_LIKE) from None
    if not isinstance(entry, dict):
        raise UsageError(f"{where}, column 1: the line is not a JSON object", hint=_LIKE)
    kinds = [key for key in ("text", "prompt", "messages") if key in entry]
    if len(kinds) != 1:
        said = f"{' and '.join(kinds)} exclude each other" if kinds else "the line has neither 'text' nor 'prompt'"
        raise UsageError(f"{where}, column 1: {said}", hint=_LIKE)
    if kinds[0] == "text":
        return _text(entry, "text", line, where)
    if kinds[0] == "prompt":
        messages: tuple[Message, ...] = ({"role": "user", "content": _text(entry, "prompt", line, where)},)
    else:
        messages = _messages(entry["messages"], line, where)
    return Pair(
        messages=messages,
        response=_response(entry, line, where),
        teacher=_teacher(entry, line, where),
        cut=entry.get("finish") == CUT,
        place=place,
    )


def _response(entry: dict[str, Any], line: str, where: str) -> str | None:
    """None: not answered yet. Empty: a line of `label`, which has ``finish``, without text."""
    response = entry.get("response")
    if response is None:
        return None
    if "finish" in entry and isinstance(response, str) and not response.strip():
        return ""
    return _text(entry, "response", line, where)


def _teacher(entry: dict[str, Any], line: str, where: str) -> str | None:
    """Only an endpoint: other files may use the key for something else."""
    teacher = entry.get("teacher")
    if not isinstance(teacher, str) or not is_endpoint(teacher):
        return None
    try:
        return str(parse_endpoint(teacher))
    except UsageError as error:
        column = 1 + max(0, line.find('"teacher"'))
        raise UsageError(f"{where}, column {column}: {error.message}", hint=error.hint) from None


def _text(entry: dict[str, Any], key: str, line: str, where: str) -> str:
    value = entry[key]
    if isinstance(value, str) and value.strip():
        return value
    column = 1 + max(0, line.find(f'"{key}"'))
    raise UsageError(f"{where}, column {column}: '{key}' must be a string that is not empty", hint=_LIKE)


def _messages(value: Any, line: str, where: str) -> tuple[Message, ...]:
    good = isinstance(value, list) and value
    if good and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    column = 1 + max(0, line.find('"messages"'))
    raise UsageError(
        f"{where}, column {column}: 'messages' must have a role and a content each, as strings", hint=_LIKE
    )
