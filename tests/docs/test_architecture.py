"""The architecture page says what the imports say."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from tests.test_imports import RANK, edges, room_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")
SHARED = {"types", "errors", "version"}


def packages() -> dict[str, set[str]]:
    """Package -> the packages of its last column, in the order of the table."""
    table = PAGE.partition("| package | purpose | depends on |\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]
    return {name.strip("`"): set(re.findall(r"`(\w+)`", depends)) for name, _, depends in rows}


def test_every_package_has_a_row_with_what_it_imports() -> None:
    found: dict[str, set[str]] = {room: set() for room in RANK if room not in ("", "__main__")}
    for module, imported in edges().items():
        if (here := room_of(module)) in found:
            found[here] |= {room_of(there) for there in imported} - {here} - SHARED
    assert packages() == found


def test_a_package_depends_on_packages_above_it() -> None:
    seen: set[str] = set()
    for name, depends in packages().items():
        assert depends <= seen, name
        seen.add(name)


def test_its_picture_is_one_file_that_loads_nothing() -> None:
    (image,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    text = (DOCS / image).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.findall(r"href|url\((?!#)|@import|<script", text)
    assert "prefers-color-scheme: dark" in text


def test_paths_that_it_names_exist() -> None:
    package = DOCS.parent / "edgecompress"
    for name in re.findall(r"`([\w/]+(?:/|\.py))`", PAGE):
        where = (DOCS.parent / name, package / name, *package.glob(f"*/*/{name}"))
        assert any(path.exists() for path in where), name
