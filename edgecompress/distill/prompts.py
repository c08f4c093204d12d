"""The prompts of a labelling, from JSON lines, and the key that identifies each response in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecompress.distill.endpoint import Endpoint
from edgecompress.errors import UsageError

Message = dict[str, str]
_SURROGATE = "\\ud"
_LIKE = 'Each line is {"prompt": "a text"} or {"messages": [{"role": "user", "content": "a text"}]}.'


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of each request. None: the endpoint's default."""

    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(
                f"max_tokens must be at least 1, not {self.max_tokens}", hint="Omit --max-tokens for 1024."
            )

    @property
    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """``place``: its index in the file, from 0, without blank lines."""

    key: str
    messages: tuple[Message, ...]
    place: int

    @property
    def text(self) -> str:
        return canonical(self.messages)


def canonical(messages: Sequence[Message]) -> str:
    return json.dumps(list(messages), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def key_of(endpoint: Endpoint, messages: Sequence[Message], sampling: Sampling) -> str:
    """sha256 of everything that a response depends on."""
    asked = json.dumps([endpoint.url, endpoint.model, canonical(messages), sampling.text])
    return hashlib.sha256(asked.encode()).hexdigest()


def read_prompts(
    path: Path, endpoint: Endpoint, sampling: Sampling, *, without_response: bool = False
) -> tuple[list[Prompt], int]:
    """Each prompt once, and the number of duplicates. ``without_response``: skip the lines that hold a response.

    Raises UsageError with line and column of the first malformed line.
    """
    found: dict[str, Prompt] = {}
    place = count = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                messages = _messages(line, f"{path}, line {number}")
                if not (without_response and json.loads(line).get("response") is not None):
                    key = key_of(endpoint, messages, sampling)
                    found.setdefault(key, Prompt(key=key, messages=messages, place=place))
                    count += 1
                place += 1
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts {path} cannot be read: {error}", hint="Give a file of JSON lines.") from None
    if not found:
        raise UsageError(f"the prompts {path} are empty", hint=_LIKE)
    return list(found.values()), count - len(found)


def _messages(line: str, where: str) -> tuple[Message, ...]:
    line = line.rstrip()
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}, column {error.colno}: {error.msg}", hint=_LIKE) from None
    if not _is_text(entry):
        raise UsageError(
            f"{where}, column {1 + max(0, line.lower().find(_SURROGATE))}: half a surrogate pair is not text",
            hint=_LIKE,
        )
    if not isinstance(entry, dict) or ("prompt" in entry) == ("messages" in entry):
        what = "is not a JSON object" if not isinstance(entry, dict) else "needs one of 'prompt' and 'messages'"
        raise UsageError(f"{where}, column 1: the line {what}", hint=_LIKE)
    if "prompt" in entry:
        prompt = entry["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise _wrong(line, where, "prompt", "must be a string that is not empty")
        return ({"role": "user", "content": prompt},)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise _wrong(line, where, "messages", "must be a list with at least one message")
    return tuple(_message(message, line, where) for message in messages)


def _message(message: Any, line: str, where: str) -> Message:
    good = isinstance(message, dict) and {"role", "content"} <= message.keys()
    if not good or not all(isinstance(value, str) for value in message.values()):
        raise _wrong(line, where, "messages", "needs a 'role' and a 'content' in each message, as strings")
    return dict(message)


def _is_text(entry: Any) -> bool:
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(line: str, where: str, key: str, rule: str) -> UsageError:
    column = 1 + max(0, line.find(f'"{key}"'))
    return UsageError(f"{where}, column {column}: '{key}' {rule}", hint=_LIKE)
