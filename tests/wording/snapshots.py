"""Where the snapshots are stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SNAPSHOTS = Path(__file__).parent / "snapshots"


def write(texts: Mapping[str, str]) -> None:
    """Store ``texts`` (name -> content); what is stored under another name is removed."""
    for path in SNAPSHOTS.rglob("*.txt"):
        if str(path.relative_to(SNAPSHOTS)) not in texts:
            path.unlink()
    for name, text in texts.items():
        (SNAPSHOTS / name).parent.mkdir(parents=True, exist_ok=True)
        (SNAPSHOTS / name).write_text(text, encoding="utf-8")


def stored() -> dict[str, str]:
    return {
        str(path.relative_to(SNAPSHOTS)): path.read_text(encoding="utf-8") for path in sorted(SNAPSHOTS.rglob("*.txt"))
    }
