"""What a manifest says of an encoder of images."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.types.bundle import ImageSettings


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    image: ImageSettings
    labels: tuple[str, ...] = ()
