"""One row."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.types.bundle import Manifest
from edgecompress.types.report import Report


def rows(manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
    return (("sum of", f"{manifest.settings['numbers']} numbers"),)
