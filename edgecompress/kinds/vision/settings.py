"""A manifest's settings of an image encoder."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.types.bundle import ImageSettings


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    image: ImageSettings
    labels: tuple[str, ...] = ()
