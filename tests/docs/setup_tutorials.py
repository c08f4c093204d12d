"""What the tutorials and their how-tos need before their first line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.setups import setup


@setup("package")
def package(folder: Path, name: str) -> None:
    """Skips the page where ``name`` is not installed."""
    pytest.importorskip(name)
