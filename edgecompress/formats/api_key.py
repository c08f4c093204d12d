"""Reads an API key from a file that contains nothing else."""

from __future__ import annotations

from pathlib import Path

from edgecompress.errors import UsageError


def read_key(path: Path) -> str:
    """Read the key. Raises UsageError; its message never contains the file's content."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"the key file {path} cannot be read: {why}", hint="Give a file that contains only the key."
        ) from None
    if not is_key(key):
        raise UsageError(f"{path} holds no API key", hint="Put the key on one line, and nothing else.")
    return key


def is_key(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
