"""Two numbers in, their sum out."""

from __future__ import annotations

import numpy as np

from edgecompress.runtime.bundle import OpenBundle


def open_bundle(source: OpenBundle) -> Adder:
    return Adder(source)


class Adder:
    def __init__(self, source: OpenBundle) -> None:
        self.manifest, self.threads = source.manifest, source.threads
        self._model = source.open()

    def __enter__(self) -> Adder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, first: float, second: float) -> float:
        (result,) = self._model.run({"numbers": np.array([[first, second]], dtype=np.float32)})
        return float(result[0, 0])

    def close(self) -> None:
        self._model.close()


def first_call(model: Adder) -> None:
    model.add(1.0, 2.0)
