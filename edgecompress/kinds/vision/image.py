"""Reads a student's image preprocessing from preprocessor_config.json."""

from __future__ import annotations

import json

from edgecompress.errors import StudentError
from edgecompress.types.bundle import ImageSettings
from edgecompress.types.student import Student


def image_settings(student: Student) -> ImageSettings:
    """Raises StudentError if the checkpoint does not describe its preprocessing."""
    path = student.path / "preprocessor_config.json"
    if not path.exists():
        raise StudentError(
            f"{student.source} has no preprocessor_config.json, so its image preprocessing is unknown",
            hint="Copy the file from the model's repository into the checkpoint's folder.",
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    size = config.get("size", {})
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    final = crop or size
    if isinstance(final, int):
        final = {"height": final, "width": final}
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    height = final.get("height", final.get("shortest_edge"))
    width = final.get("width", final.get("shortest_edge"))
    if crop and edge is None and isinstance(size, dict) and "height" in size:
        edge = int(size["height"])
    return ImageSettings(
        height=int(height),
        width=int(width),
        mean=tuple(float(v) for v in config.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(float(v) for v in config.get("image_std", (0.5, 0.5, 0.5))),
        rescale=float(config.get("rescale_factor", 1 / 255)),
        resample=int(config.get("resample", 3)),
        resize=edge,
    )
