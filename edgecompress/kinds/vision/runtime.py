"""The runtime for encoders of images: ``load`` a bundle, then call ``encode`` or ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.kinds.vision.images import pixel_values
from edgecompress.kinds.vision.settings import VisionSettings
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.model import Model
from edgecompress.runtime.scores import check_counts, top_labels
from edgecompress.types.arrays import Array, FloatArray


def open_bundle(source: OpenBundle) -> ImageEncoder:
    """Open the bundle. Raises HostError, UsageError, BundleError."""
    return ImageEncoder(source)


def first_call(model: ImageEncoder) -> None:
    """Run one image of zeros."""
    image = model.settings.image
    model.run({"pixel_values": np.zeros((1, 3, image.height, image.width), dtype=np.float32)})


class ImageEncoder:
    """A bundle for images, opened by ``load``: embeddings or labels.

    All methods are thread-safe. Use it as a context manager, or call ``close``. Reading image files needs Pillow
    (``pip install 'edgecompress[images]'``).

    Attributes:
        manifest: The bundle's manifest; ``manifest.task`` is the task, such as ``"image-classification"``.
        threads: Number of CPU threads.
        settings: Labels and image preprocessing of the model.

    Example:
        ```python
        from edgecompress.runtime import load

        with load("vit.bundle") as encoder:
            print(encoder.predict(["photo.jpg"]))
        ```
    """

    def __init__(self, source: OpenBundle) -> None:
        """Applications call ``load`` instead. Raises HostError, UsageError, BundleError."""
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
        """Free the model. Later calls raise UsageError."""
        model, self._model = self._model, None
        if model is not None:
            model.close()

    @property
    def model(self) -> Model:
        """The model. Raises UsageError if the bundle is closed."""
        if self._model is None:
            raise UsageError("this bundle was closed", hint="Load it again.")
        return self._model

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run the model directly.

        Args:
            feed: ``{"pixel_values": float32 [B, 3, height, width]}``.

        Returns:
            The model's outputs, in the manifest's order.

        Raises:
            UsageError: The bundle is closed, or a shape is not accepted.
        """
        return self.model.run(feed)

    def encode(self, pixels: FloatArray, *, batch_size: int = 32) -> FloatArray:
        """Embed images. For the task image-feature-extraction.

        Args:
            pixels: float32 [N, 3, height, width], preprocessed, as ``pixels`` returns it.
            batch_size: Maximum images per run.

        Returns:
            float32 [N, dimension]: the first token's vector of each image.

        Raises:
            UsageError: The bundle has another task or is closed, or the shape or dtype is wrong.
        """
        if self.manifest.task != "image-feature-extraction":
            raise UsageError(
                f"this bundle is for {self.manifest.task}, which has no encode()", hint="Call predict() instead."
            )
        check_counts(batch_size=batch_size)
        parts = [outputs[0][:, 0] for outputs in self._batches(pixels, batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, self._dimension()), dtype=np.float32)

    def predict(self, inputs: Sequence[Any] | FloatArray, *, batch_size: int = 32, top_k: int = 5) -> list[Any]:
        """Run the bundle's task on images and return plain Python values.

        Args:
            inputs: Paths of image files, or pixel values float32 [N, 3, height, width].
            batch_size: Maximum images per run.
            top_k: Number of labels per image.

        Returns:
            One entry per image: its vector as a list of floats for image-feature-extraction, or the best ``top_k`` of
            ``[{"label", "score"}]`` by softmax for image-classification.

        Raises:
            UsageError: The bundle is closed, a file is missing or not an image, the shape or dtype is wrong, or a
                number is below 1.
            HostError: Pillow is not installed.
        """
        check_counts(batch_size=batch_size, top_k=top_k)
        pixels = inputs if isinstance(inputs, np.ndarray) else self.pixels([str(path) for path in inputs])
        if self.manifest.task == "image-feature-extraction":
            return [vector.tolist() for vector in self.encode(pixels, batch_size=batch_size)]
        batches = self._batches(pixels, batch_size)
        return [top_labels(row, self.settings.labels, top_k) for outputs in batches for row in outputs[0]]

    def pixels(self, paths: Sequence[str]) -> FloatArray:
        """Read image files and preprocess them as the checkpoint's processor does.

        Args:
            paths: Paths of image files.

        Returns:
            float32 [N, 3, height, width].

        Raises:
            UsageError: A file is missing or not an image.
            HostError: Pillow is not installed.
        """
        return pixel_values(paths, self.settings.image)

    def _batches(self, pixels: FloatArray, batch_size: int) -> list[list[Array]]:
        image = self.settings.image
        if not isinstance(pixels, np.ndarray):
            raise UsageError("this bundle takes images, not texts", hint="Pass paths of image files to predict().")
        if pixels.ndim != 4 or pixels.shape[2:] != (image.height, image.width) or pixels.dtype != np.float32:
            raise UsageError(
                f"pixel values are float32 [N, 3, {image.height}, {image.width}], not {pixels.dtype} {pixels.shape}",
                hint="Call pixels() to read them from image files.",
            )
        size = min(batch_size, self._most_rows or batch_size)
        return [self.run({"pixel_values": pixels[i : i + size]}) for i in range(0, len(pixels), size)]

    def _dimension(self) -> int:
        size = self._variant.outputs[0].shape[-1]
        return size if isinstance(size, int) else 0
