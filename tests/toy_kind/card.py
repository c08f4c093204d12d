"""The usage example in a bundle's README."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.types.bundle import Manifest
from edgecompress.types.report import Report


def example(manifest: Manifest) -> Sequence[str]:
    return ('with load("path/to/this/folder") as adder:', "    print(adder.add(1.0, 2.0))")


def rows(manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
    return ()
