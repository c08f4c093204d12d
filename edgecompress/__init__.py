"""edgecompress: a distilled student in, a verified bundle for one named hardware target out.

Importing this package imports nothing heavy; :func:`export` and :func:`load` bring in what they need when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load"]

if TYPE_CHECKING:
    from edgecompress.pipeline import export
    from edgecompress.runtime import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgecompress.runtime import load

        return load
    if name == "export":
        from edgecompress.pipeline import export

        return export
    raise AttributeError(f"module 'edgecompress' has no attribute '{name}'")
