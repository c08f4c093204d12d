"""The results of a backend's build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgecompress.types.bundle import BuildPlan, EngineRecord, KernelLibrary, RuntimeSettings, TensorSpec
from edgecompress.types.graph import Graph
from edgecompress.types.report import KernelUse, Layer

Content = Path | str | bytes
"""Content of a bundle's file: a path to copy, or the content itself."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a backend builds from one graph. Immutable: each step of a build returns a new one."""

    name: str  # the graph's name in its kind, e.g. "model"
    graph: Graph  # what the bundle runs, or the source of an engine; any file format
    runtime: RuntimeSettings
    accuracy_level: int | None = None  # of MatMulNBits, if several are tried
    kernels: tuple[KernelUse, ...] = ()
    library: KernelLibrary | None = None  # with the kernels that are used
    engine: EngineRecord | None = None  # what runs instead of the graph
    build: BuildPlan | None = None  # how the engine is built on the device
    files: Mapping[str, Content] = field(default_factory=dict)  # files besides the graph's, e.g. an engine's
    notes: tuple[str, ...] = ()  # for the report


@dataclass(frozen=True, kw_only=True)
class ModelContents:
    """The contents of a model's file, for the manifest and the report."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...] = ()
    ops: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    path: str  # of the model in the bundle: "model.onnx"
    files: Mapping[str, Content]  # the model, and the files that it reads
