"""The address and the API key of a teacher behind an OpenAI-compatible endpoint. The key is never shown.

The address is written into stores and reports, so it must not contain a key. The key comes from the environment or a
file.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from edgecompress.errors import UsageError
from edgecompress.formats.api_key import is_key, read_key

SCHEME = "openai:"
API_KEY_ENV = "OPENAI_API_KEY"
_LIKE = "Give openai:https://host/v1#model."
_HIDDEN = "***"
_LONGEST_SHOWN = 8  # consecutive characters of a key; as many or more are hidden
_PRIVATE_ENDINGS = (".local", ".internal", ".lan", ".localhost")


@dataclass(frozen=True)
class Endpoint:
    url: str  # scheme, host and path, for ``base_url``
    model: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.url}#{self.model}"

    @property
    def limit_name(self) -> str:
        """The field for the maximum number of new tokens: newer models of OpenAI reject ``max_tokens``."""
        return "max_completion_tokens" if urlsplit(self.url).hostname == "api.openai.com" else "max_tokens"


class Secret:
    """An API key that appears in no message, traceback or pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"Secret({_HIDDEN})"

    def __bool__(self) -> bool:
        return self._value is not None

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key cannot be pickled")

    def reveal(self) -> str:
        """The key, for the request header only; a placeholder if there is none."""
        return self._value or "none"

    def within(self, text: str) -> bool:
        return self._value is not None and self._value in text

    def scrub_whole(self, text: str) -> str:
        """The text without the complete key."""
        return text.replace(self._value, _HIDDEN) if self._value else text

    def scrub(self, text: str) -> str:
        """The text without the key and without long parts of it."""
        key = self._value
        if not key:
            return text
        text = text.replace(key, _HIDDEN)
        if len(key) <= _LONGEST_SHOWN:
            return text
        parts, at = [], 0
        while at < len(text):
            end = at + _LONGEST_SHOWN
            if end <= len(text) and text[at:end] in key:
                while end < len(text) and text[at : end + 1] in key:
                    end += 1
                parts.append(_HIDDEN)
                at = end
            else:
                parts.append(text[at])
                at += 1
        return "".join(parts)


def is_endpoint(teacher: str) -> bool:
    return teacher.startswith(SCHEME)


def parse_endpoint(teacher: str) -> Endpoint:
    """``openai:https://host/v1#model``. Raises UsageError that does not repeat it: it may contain a key."""
    try:
        parts = urlsplit(teacher.removeprefix(SCHEME))
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError("the teacher's address is not a URL", hint=_LIKE) from None
    if not is_endpoint(teacher) or parts.scheme not in ("http", "https") or not host:
        raise UsageError("the teacher's address is not an OpenAI-compatible endpoint", hint=_LIKE)
    if parts.username is not None or parts.password is not None or parts.query:
        raise UsageError(
            "the teacher's address has a user, a password or a query, which may contain a key",
            hint=f"{_LIKE} Put the key in the environment variable {API_KEY_ENV}.",
        )
    if not parts.fragment:
        raise UsageError("the teacher's address does not name the model", hint=_LIKE)
    return Endpoint(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.fragment)


@dataclass(frozen=True, kw_only=True)
class KeySource:
    """Where the key is read from: a file if one is given, else an environment variable."""

    variable: str = API_KEY_ENV
    file: str | None = None

    def __str__(self) -> str:
        return self.variable if self.file is None else self.file


def read_secret(endpoint: Endpoint, source: KeySource | None = None) -> Secret:
    """The key, or an empty Secret. Raises UsageError if the key would be shown or sent unencrypted over a network."""
    source = source or KeySource()
    if source.file is not None:
        value = read_key(Path(source.file))
    else:
        value = os.environ.get(source.variable, "").strip()
        if not value:
            return Secret(None)
        if not is_key(value):
            raise UsageError(f"the value of {source.variable} is not an API key", hint="Set it to the key only.")
    secret = Secret(value)
    if secret.within(str(endpoint)):
        raise UsageError("the teacher's address contains the API key", hint=_LIKE)
    parts = urlsplit(endpoint.url)
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        raise UsageError(
            "the API key would be sent unencrypted: the teacher's address is http",
            hint="Use https, or unset the key if the endpoint needs none.",
        )
    return secret


def _is_near(host: str) -> bool:
    """Whether the host is this machine or on a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_ENDINGS)
