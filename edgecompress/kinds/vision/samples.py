"""Synthetic images as graph inputs, for calibration and verification."""

from __future__ import annotations

import json

import numpy as np

from edgecompress.types.arrays import Feed
from edgecompress.types.student import Student


def image_feeds(student: Student, count: int, seed: int) -> list[Feed]:
    """Synthetic images, float32 [1, channels, height, width]: smooth colour fields with noise, unit variance.

    Used because the standard library contains no photographs; the report says so.
    """
    config = json.loads((student.path / "config.json").read_text(encoding="utf-8"))
    size, channels = config["image_size"], config.get("num_channels", 3)
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    feeds: list[Feed] = []
    for _ in range(count):
        waves = rng.normal(0, 4, (channels, 3, 2))
        phases = rng.uniform(0, 2 * np.pi, (channels, 3))
        image = np.stack(
            [
                sum(np.sin(2 * np.pi * (w[0] * x + w[1] * y) + p) for w, p in zip(waves[c], phases[c], strict=True))
                for c in range(channels)
            ]
        )
        image = image + rng.normal(0, 0.3, image.shape)
        image = (image - image.mean()) / image.std()
        feeds.append({"pixel_values": image[None].astype(np.float32)})
    return feeds
