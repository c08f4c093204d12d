"""An ONNX graph on disk, between two stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecompress.types.precision import FP32


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph file. A stage reads one and writes another; it never changes its input."""

    path: Path
    stage: str  # "captured", "quantized", "lowered", "compiled"
    precision: str = FP32
    weights_of: Path | None = None  # the graph in the same folder whose data file this one uses; None: its own

    library: Path | None = None  # custom ops that it needs, built for the target
    library_here: Path | None = None  # the same ops for this machine, if it cannot run the target's

    @property
    def data(self) -> Path:
        """The data file of large weights; it does not exist if the weights are in the graph file."""
        path = self.weights_of or self.path
        return path.with_name(path.name + ".data")

    @property
    def runnable_library(self) -> Path | None:
        """The custom ops for a session on this machine."""
        return self.library_here or self.library

    @property
    def bytes_on_disk(self) -> int:
        return self.path.stat().st_size + (self.data.stat().st_size if self.data.exists() else 0)
