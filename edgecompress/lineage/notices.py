"""Licence and notice files, found next to the weights or declared, and their place in a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import RecipeError

FOLDER = "licenses"
_BEGINNINGS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Notice:
    path: Path
    origin: str  # in words: the owner and the source


def find_notices(
    folder: Path, name: str, ancestors: Mapping[str, Path], declared: Sequence[str]
) -> Mapping[str, Notice]:
    """Path in the bundle -> notice: the checkpoint's, those of local ancestors, and the declared ones.

    Raises RecipeError if a declared file is missing or larger than 1 MB.
    """
    found: dict[str, Notice] = {}
    for path in notice_files(folder):
        found[f"{FOLDER}/{path.name}"] = Notice(path=path, origin=f"found with {name}")
    for ancestor, where in ancestors.items():
        for path in notice_files(where):
            found[f"{FOLDER}/{ancestor}/{path.name}"] = Notice(path=path, origin=f"found with {ancestor}")
    for given in declared:
        path = _declared(folder, given)
        if any(path == notice.path for notice in found.values()):
            continue
        place, number = f"{FOLDER}/declared/{path.name}", 1
        while place in found:
            number += 1
            place = f"{FOLDER}/declared/{number}-{path.name}"
        found[place] = Notice(path=path, origin="declared")
    return found


def notice_files(folder: Path) -> list[Path]:
    """The notice files of one checkpoint, sorted."""
    return [path for path in sorted(folder.iterdir()) if path.name.upper().startswith(_BEGINNINGS) and _is_text(path)]


def _is_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= _LARGEST_BYTES


def _declared(folder: Path, given: str) -> Path:
    path = Path(given).expanduser()
    for place in (path, folder / path):
        if _is_text(place):
            return place.resolve()
    hint = "Paths are relative to the current or the checkpoint's folder; a notice has at most 1 MB."
    raise RecipeError(f"the licence or notice file {given} in [provenance] does not exist", hint=hint)
