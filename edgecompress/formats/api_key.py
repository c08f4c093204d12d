"""A file with an API key, and nothing else, in it."""

from __future__ import annotations

from pathlib import Path

from edgecompress.errors import UsageError


def read_key(path: Path) -> str:
    """Raises UsageError; what is in the file is in no message."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"the key file {path} cannot be read: {why}", hint="Give a file with the key alone.") from None
    if not is_key(key):
        raise UsageError(f"{path} holds no API key", hint="It has the key in one line, and nothing else.")
    return key


def is_key(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
