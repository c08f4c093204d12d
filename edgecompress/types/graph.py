"""An ONNX graph on disk, between two stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph file. A stage reads one and writes another; it never changes the one it was given."""

    path: Path
    stage: str  # "captured", "quantized", "lowered", "compiled"
    precision: str = "fp32"

    @property
    def bytes_on_disk(self) -> int:
        data = self.path.with_name(self.path.name + ".data")
        return self.path.stat().st_size + (data.stat().st_size if data.exists() else 0)
