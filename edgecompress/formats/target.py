"""Reads and checks a target's TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path

from edgecompress.errors import UnknownTargetError
from edgecompress.formats.codec import from_jsonable
from edgecompress.types.target import ACCELERATORS, SCHEMA_VERSION, Target

_ARCHES = ("x86_64", "aarch64")
_DTYPES = ("float32", "float16", "bfloat16", "float8", "int8", "int4")


def read_target(path: Path) -> Target:
    """Read a target. Raises UnknownTargetError if the file is missing, not TOML, or not valid."""
    hint = "Compare it with a shipped target: `edgecompress targets show x86-64-avx2`."
    try:
        target = from_jsonable(Target, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UnknownTargetError(f"there is no target file {path}", hint=hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise UnknownTargetError(f"the target file {path} is not valid: {error}", hint=hint) from error
    rules = (
        (target.schema_version <= SCHEMA_VERSION, f"it is for a newer edgecompress (schema {target.schema_version})"),
        (target.name == path.stem, f"its name '{target.name}' differs from the file name '{path.stem}'"),
        (target.arch in _ARCHES, f"arch must be one of {', '.join(_ARCHES)}, not '{target.arch}'"),
        (
            target.accelerator in ACCELERATORS,
            f"accelerator must be one of {', '.join(ACCELERATORS)}, not '{target.accelerator}'",
        ),
        (bool(target.backends), "backends must name at least one backend"),
        (
            set(target.computes) <= set(_DTYPES) and bool(target.computes),
            f"computes must be among {', '.join(_DTYPES)}",
        ),
        (18 <= target.opset <= 24, f"opset must be from 18 to 24, not {target.opset}"),
    )
    for holds, message in rules:
        if not holds:
            raise UnknownTargetError(f"the target file {path} is not valid: {message}", hint=hint)
    return target
