"""Which architectures were tried, and what came of it: what the kinds say.

An architecture that is not listed may work: every export is checked against PyTorch before a bundle is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.kinds import kinds
from edgecompress.types.architecture import Architecture

_MODULE = "architectures"  # of a kind; there is none where none was tried


def architectures() -> Mapping[str, tuple[str, Architecture]]:
    """Name -> the kind that takes it, and the architecture."""
    return {
        architecture.name: (kind.name, architecture)
        for kind in kinds().values()
        if kind.plug_in.has(_MODULE)
        for architecture in kind.plug_in.part(_MODULE).ARCHITECTURES
    }
