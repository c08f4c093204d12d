"""What a backend makes of one graph of a student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.types.bundle import BuildPlan, EngineRecord, KernelLibrary, RuntimeSettings, TensorSpec
from edgecompress.types.graph import Graph
from edgecompress.types.report import KernelUse, Layer

Content = Path | str | bytes
"""Of a file of a bundle: a path to copy, or the content itself."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A step of a build makes another one of it; none is ever changed."""

    name: str  # of the graph, as its kind calls it: "model"
    graph: Graph  # what the bundle runs, or what an engine is built from; of any file format
    runtime: RuntimeSettings
    accuracy_level: int | None = None  # of MatMulNBits, where several are tried
    kernels: tuple[KernelUse, ...] = ()
    library: KernelLibrary | None = None  # of the kernels that are used
    engine: EngineRecord | None = None  # what runs in the place of the graph
    build: BuildPlan | None = None  # how the engine is built on the device
    files: Mapping[str, Content] = field(default_factory=dict)  # beside those of the graph: an engine's
    notes: tuple[str, ...] = ()  # for the report


@dataclass(frozen=True, kw_only=True)
class ModelContents:
    """What a file of a model holds, as a manifest and a report tell it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...] = ()
    ops: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    path: str  # of the model in the bundle: "model.onnx"
    files: Mapping[str, Content]  # that one, and what it reads
