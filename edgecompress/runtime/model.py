"""What a model is to whoever runs it, wherever it runs. A backend's ``load`` opens it, a kind's ``runtime`` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgecompress.types.arrays import Array, Feed
from edgecompress.types.bundle import TensorSpec


class Model(Protocol):
    """Arrays in by name, arrays out in order. May be run from several threads at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        """The ``wanted`` outputs, all unless given. What the model has no input for is left out of the feed."""

    def close(self) -> None: ...
