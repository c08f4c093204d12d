"""Licence and notice files: found beside the weights, or declared, and where they lie in a bundle."""

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
    origin: str  # in words: whose it is, and who says so


def find_notices(
    folder: Path, name: str, ancestors: Mapping[str, Path], declared: Sequence[str]
) -> Mapping[str, Notice]:
    """File of the bundle -> notice: the checkpoint's, those of ancestors that lie here, and the declared ones.

    Raises RecipeError if a declared one is not there, or is no text of a licence's size.
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
    """Those of one checkpoint, in order."""
    return [path for path in sorted(folder.iterdir()) if path.name.upper().startswith(_BEGINNINGS) and _is_text(path)]


def _is_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= _LARGEST_BYTES


def _declared(folder: Path, given: str) -> Path:
    path = Path(given).expanduser()
    for place in (path, folder / path):
        if _is_text(place):
            return place.resolve()
    hint = "Paths are taken from here, or from the checkpoint's folder; a notice is a file of 1 MB at most."
    raise RecipeError(f"there is no licence or notice file {given}, which [provenance] declares", hint=hint)
