"""Reads and preprocesses image files as the checkpoint's processor does. Needs Pillow, an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgecompress.errors import HostError, UsageError
from edgecompress.types.bundle import ImageSettings


def pixel_values(paths: Sequence[str], settings: ImageSettings) -> npt.NDArray[np.float32]:
    """Return float32 [N, 3, height, width]. Raises HostError without Pillow, UsageError for a file that is no image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise HostError(
            "reading image files needs Pillow", hint="pip install 'edgecompress[images]', or pass pixel values"
        ) from None
    pixels = []
    for path in paths:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except FileNotFoundError:
            raise UsageError(f"file {path} does not exist", hint="Give paths of image files.") from None
        except UnidentifiedImageError:
            raise UsageError(f"{path} is not an image", hint="Give paths of image files.") from None
        if settings.resize is not None:
            scale = settings.resize / min(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling(settings.resample))
            left, top = (image.width - settings.width) // 2, (image.height - settings.height) // 2
            image = image.crop((left, top, left + settings.width, top + settings.height))
        else:
            image = image.resize((settings.width, settings.height), Image.Resampling(settings.resample))
        scaled = np.asarray(image, dtype=np.float32) * np.float32(settings.rescale)
        x = (scaled - np.array(settings.mean, dtype=np.float32)) / np.array(settings.std, dtype=np.float32)
        pixels.append(x.transpose(2, 0, 1).astype(np.float32))
    return np.stack(pixels) if pixels else np.zeros((0, 3, settings.height, settings.width), dtype=np.float32)
