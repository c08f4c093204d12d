"""What a student is taught on: texts, or prompts with a teacher's responses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.errors import UsageError

_SNIFF_BYTES = 8192
_LIKE = 'Each line is {"text": "…"}, or {"prompt": "…", "response": "…"}; a plain text file has one text a line.'
_JSON_LINES = (".jsonl", ".ndjson", ".json")

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt, as the messages of a conversation, and the response to it; None: there is none yet."""

    messages: tuple[Message, ...]
    response: str | None


@dataclass(frozen=True, kw_only=True)
class TeachingData:
    """``texts`` or ``pairs``, never both."""

    name: str
    sha256: str  # of the file
    texts: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def __len__(self) -> int:
        return len(self.texts) or len(self.pairs)


def read_data(path: Path) -> TeachingData:
    """Texts once each, in the file's order. Raises UsageError, with line and column where a line is malformed."""
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no data file {path}", hint=f"Give --data a file. {_LIKE}") from None
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
    found = [_row(line.rstrip("\r"), f"{path}, line {number}") for number, line in lines]
    texts = tuple(dict.fromkeys(row for row in found if isinstance(row, str)))
    pairs = tuple(row for row in found if isinstance(row, Pair))
    if texts and pairs:
        number = next(
            n for (n, _), row in zip(lines, found, strict=True) if isinstance(row, str) != isinstance(found[0], str)
        )
        raise UsageError(
            f"{path}, line {number}, column 1: texts and prompts are mixed", hint="Give them in files of their own."
        )
    return TeachingData(name=path.name, sha256=digest, texts=texts, pairs=pairs)


def _row(line: str, where: str) -> str | Pair:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}, column {error.colno}: {error.msg}", hint=_LIKE) from None
    if not isinstance(entry, dict):
        raise UsageError(f"{where}, column 1: it is no JSON object", hint=_LIKE)
    kinds = [key for key in ("text", "prompt", "messages") if key in entry]
    if len(kinds) != 1:
        said = f"{' and '.join(kinds)} exclude each other" if kinds else "it has neither 'text' nor 'prompt'"
        raise UsageError(f"{where}, column 1: {said}", hint=_LIKE)
    if kinds[0] == "text":
        return _text(entry, "text", line, where)
    response = _text(entry, "response", line, where) if entry.get("response") is not None else None
    if kinds[0] == "prompt":
        return Pair(messages=({"role": "user", "content": _text(entry, "prompt", line, where)},), response=response)
    return Pair(messages=_messages(entry["messages"], line, where), response=response)


def _text(entry: dict[str, Any], key: str, line: str, where: str) -> str:
    value = entry[key]
    if isinstance(value, str) and value.strip():
        return value
    column = 1 + max(0, line.find(f'"{key}"'))
    raise UsageError(f"{where}, column {column}: '{key}' is a text that is not empty", hint=_LIKE)


def _messages(value: Any, line: str, where: str) -> tuple[Message, ...]:
    good = isinstance(value, list) and value
    if good and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    column = 1 + max(0, line.find('"messages"'))
    raise UsageError(
        f"{where}, column {column}: 'messages' have a role and a content each, which are texts", hint=_LIKE
    )
