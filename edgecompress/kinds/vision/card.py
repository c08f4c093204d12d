"""An image encoder bundle's README: the usage example."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.types.bundle import Manifest
from edgecompress.types.report import Report


def example(manifest: Manifest) -> Sequence[str]:
    opened = 'with load("path/to/this/folder") as encoder:  # image files are read with Pillow'
    if manifest.task != "image-feature-extraction":
        return opened, '    print(encoder.predict(["photo.jpg"]))'
    dimension = manifest.variant().outputs[0].shape[-1]
    return (
        opened,
        f'    vectors = encoder.encode(encoder.pixels(["photo.jpg"]))  # float32 [1, {dimension}]',
        "    print(vectors.shape)",
    )


def rows(manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
    return ()
