"""The table as a model, which ``build`` verifies and ``load`` opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecompress.types.arrays import Array, Feed
from edgecompress.types.bundle import TensorSpec

INPUTS = (TensorSpec(name="numbers", dtype="float32", shape=("batch", 2)),)
OUTPUTS = (TensorSpec(name="sum", dtype="float32", shape=("batch", 1)),)


class Table:
    inputs = INPUTS
    outputs = OUTPUTS

    def __init__(self, path: Path) -> None:
        self._weights = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float32)

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        return [feed["numbers"] @ self._weights]

    def close(self) -> None: ...
