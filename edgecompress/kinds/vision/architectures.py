"""Which encoders of images were tried, and what came of it. Each line is shown to be true by a test."""

from __future__ import annotations

from edgecompress.types.architecture import Architecture

ARCHITECTURES = tuple(Architecture(name=name) for name in ("deit", "dinov2", "vit"))
