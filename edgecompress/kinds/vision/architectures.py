"""The image encoder architectures that were tried, with the results. A test checks each line."""

from __future__ import annotations

from edgecompress.types.architecture import Architecture

ARCHITECTURES = tuple(Architecture(name=name) for name in ("deit", "dinov2", "vit"))
