"""How a bundle's README shows the use of an encoder of images."""

from __future__ import annotations

from collections.abc import Sequence


def example(task: str) -> Sequence[str]:
    return ('with load("path/to/this/folder") as encoder:', '    print(encoder.predict(["image.jpg"]))')
