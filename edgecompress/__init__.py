"""edgecompress: turns a distilled student into a verified bundle for one named hardware target.

Importing this package is cheap; :func:`load` imports what a bundle needs when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.version import __version__

__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from edgecompress.loading import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgecompress.loading import load

        return load
    raise AttributeError(f"module 'edgecompress' has no attribute '{name}'")
