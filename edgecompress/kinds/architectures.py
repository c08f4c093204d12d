"""The architectures that the kinds list as tried, with the results.

An unlisted architecture can work too: every export is checked against PyTorch before a bundle is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.kinds import kinds
from edgecompress.types.architecture import Architecture

_MODULE = "architectures"  # an optional module of a kind


def architectures() -> Mapping[str, tuple[str, Architecture]]:
    """Architecture name -> (name of its kind, the architecture)."""
    return {
        architecture.name: (kind.name, architecture)
        for kind in kinds().values()
        if kind.plug_in.has(_MODULE)
        for architecture in kind.plug_in.part(_MODULE).ARCHITECTURES
    }
