"""A target's TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path

from edgecompress.errors import UnknownTargetError
from edgecompress.formats.codec import from_jsonable
from edgecompress.types.target import ACCELERATORS, SCHEMA_VERSION, Target

_ARCHES = ("x86_64", "aarch64")
_DTYPES = ("float32", "float16", "bfloat16", "float8", "int8", "int4")


def read_target(path: Path) -> Target:
    """Raises UnknownTargetError if the file is missing, not TOML, or not a target."""
    hint = "See a shipped one with `edgecompress targets show x86-64-avx2`."
    try:
        target = from_jsonable(Target, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UnknownTargetError(f"there is no target file {path}", hint=hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise UnknownTargetError(f"the target file {path} is not valid: {error}", hint=hint) from error
    rules = (
        (target.schema_version <= SCHEMA_VERSION, f"it is of a newer schema ({target.schema_version})"),
        (target.name == path.stem, f"its name '{target.name}' is not the file's, '{path.stem}'"),
        (target.arch in _ARCHES, f"arch '{target.arch}' is none of {', '.join(_ARCHES)}"),
        (
            target.accelerator in ACCELERATORS,
            f"accelerator '{target.accelerator}' is none of {', '.join(ACCELERATORS)}",
        ),
        (bool(target.backends), "it names no backend"),
        (
            set(target.computes) <= set(_DTYPES) and bool(target.computes),
            f"computes must be among {', '.join(_DTYPES)}",
        ),
        (18 <= target.opset <= 24, f"opset {target.opset} is not between 18 and 24"),
    )
    for holds, message in rules:
        if not holds:
            raise UnknownTargetError(f"the target file {path} is not valid: {message}", hint=hint)
    return target
