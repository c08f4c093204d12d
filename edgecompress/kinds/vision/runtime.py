"""The embeddable runtime for encoders of images: ``load`` a bundle, then ``encode`` or ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.kinds.vision.images import pixel_values
from edgecompress.kinds.vision.settings import VisionSettings
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.model import Model
from edgecompress.runtime.scores import top_labels
from edgecompress.types.arrays import Array, FloatArray


def open_bundle(source: OpenBundle) -> ImageEncoder:
    """Raises HostError, UsageError, BundleError."""
    return ImageEncoder(source)


def first_call(model: ImageEncoder) -> None:
    """One image, of zeros."""
    image = model.settings.image
    model.run({"pixel_values": np.zeros((1, 3, image.height, image.width), dtype=np.float32)})


class ImageEncoder:
    """A loaded bundle. All methods may be called from several threads at once."""

    def __init__(self, source: OpenBundle) -> None:
        """Raises HostError, UsageError, BundleError."""
        self.manifest, self.threads = source.manifest, source.threads
        self.settings = read_settings(VisionSettings, source.manifest)
        self._variant = source.variant()
        self._model: Model | None = source.open()
        engine = self._variant.engine
        self._most_rows = next(iter(engine.profile.values())).largest[0] if engine is not None else None

    def __enter__(self) -> ImageEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model. Calling anything afterwards raises UsageError."""
        model, self._model = self._model, None
        if model is not None:
            model.close()

    @property
    def model(self) -> Model:
        """What runs. Raises UsageError for a bundle that is closed."""
        if self._model is None:
            raise UsageError("this bundle was closed", hint="Load it again.")
        return self._model

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The model itself: arrays of the manifest's inputs in, arrays of its outputs out."""
        return self.model.run(feed)

    def encode(self, pixels: FloatArray, *, batch_size: int = 32) -> FloatArray:
        """Embed pixel values float32 [N, 3, height, width] as float32 [N, dimension]: the first token's vector.

        Raises UsageError for another shape or dtype, or a bundle that classifies.
        """
        if self.manifest.task != "image-feature-extraction":
            raise UsageError(
                f"this bundle is for {self.manifest.task}, which has no encode()", hint="Call predict() instead."
            )
        if batch_size < 1:
            raise UsageError(f"batch_size is at least 1, not {batch_size}", hint="Leave it out for 32.")
        parts = [outputs[0][:, 0] for outputs in self._batches(pixels, batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, self._dimension()), dtype=np.float32)

    def predict(self, inputs: Sequence[Any] | FloatArray, *, batch_size: int = 32, top_k: int = 5) -> list[Any]:
        """One entry an image, a path or pixel values: its vector as a list of floats, or ``[{"label", "score"}]``.

        Raises UsageError for a file that is no image, HostError without Pillow.
        """
        pixels = inputs if isinstance(inputs, np.ndarray) else self.pixels([str(path) for path in inputs])
        if self.manifest.task == "image-feature-extraction":
            return [vector.tolist() for vector in self.encode(pixels, batch_size=batch_size)]
        batches = self._batches(pixels, batch_size)
        return [top_labels(row, self.settings.labels, top_k) for outputs in batches for row in outputs[0]]

    def pixels(self, paths: Sequence[str]) -> FloatArray:
        """Image files as pixel values, as the checkpoint's processor does it. Raises UsageError, HostError."""
        return pixel_values(paths, self.settings.image)

    def _batches(self, pixels: FloatArray, batch_size: int) -> list[list[Array]]:
        image = self.settings.image
        if not isinstance(pixels, np.ndarray):
            raise UsageError("this bundle takes images, not texts", hint="Call predict() with paths of image files.")
        if pixels.ndim != 4 or pixels.shape[2:] != (image.height, image.width) or pixels.dtype != np.float32:
            raise UsageError(
                f"pixel values are float32 [N, 3, {image.height}, {image.width}], not {pixels.dtype} {pixels.shape}",
                hint="pixels() makes them from image files.",
            )
        size = min(batch_size, self._most_rows or batch_size)
        return [self.run({"pixel_values": pixels[i : i + size]}) for i in range(0, len(pixels), size)]

    def _dimension(self) -> int:
        size = self._variant.outputs[0].shape[-1]
        return size if isinstance(size, int) else 0
