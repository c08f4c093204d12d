"""Reads a profile's JSON file."""

from __future__ import annotations

import json
from pathlib import Path

from edgecompress.errors import UsageError
from edgecompress.formats.codec import from_jsonable
from edgecompress.types.profile import PROFILE_SCHEMA_VERSION, Profile


def read_profile(path: Path) -> Profile:
    """Read a profile; ``path`` is the file or the folder that `edgecompress profile -o` wrote. Raises UsageError."""
    file = path / "profile.json" if path.is_dir() else path
    hint = "Give a profile.json that `edgecompress profile BUNDLE -o DIR` wrote with this version."
    try:
        found = from_jsonable(Profile, json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"there is no profile {file}", hint=hint) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not a profile: {str(error).splitlines()[0]}", hint=hint) from error
    if found.schema_version > PROFILE_SCHEMA_VERSION:
        raise UsageError(f"{file} was written by a newer edgecompress (schema {found.schema_version})", hint=hint)
    return found
