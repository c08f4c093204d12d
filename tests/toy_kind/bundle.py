"""Writes a complete adder bundle by hand, and installs the package."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompress import registry
from edgecompress.formats.codec import dumps
from edgecompress.formats.cpu import host_arch
from edgecompress.formats.manifest import REFERENCE, file_sha256, write_manifest
from edgecompress.formats.recipe import recipe_toml
from edgecompress.types.bundle import (
    MODEL,
    FileRecord,
    Manifest,
    ModelRecord,
    RuntimeSettings,
    TargetRecord,
    TensorSpec,
    Variant,
)
from edgecompress.types.provenance import UNKNOWN, Lineage
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import Fidelity, Report

KIND = "adder"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str = "tests.toy_kind") -> None:
    """Write the metadata that pip would, with the entry points of the kind and the backend."""
    info = folder / "toy_kind-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-kind\nVersion: 1\n")
    kinds, backends = (
        f"[edgecompress.kinds]\n{KIND} = {package}\n",
        "[edgecompress.backends]\ntable = tests.toy_backend\n",
    )
    (info / "entry_points.txt").write_text(kinds + backends)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    registry.plug_ins.cache_clear()


def adder_bundle(folder: Path, *, error: float = 0.0) -> Path:
    """``error`` is added to its sums."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(_model(error).SerializeToString())
    (folder / REFERENCE).write_bytes(_reference())
    (folder / "report.json").write_text(dumps(Report(fidelity=Fidelity(samples=2, measures={"largest_error": 0.0}))))
    unknown = {"source": UNKNOWN, "revision": UNKNOWN, "licence": UNKNOWN, "base_model": UNKNOWN, "datasets": UNKNOWN}
    (folder / "lineage.json").write_text(dumps(Lineage(**unknown)))
    (folder / "recipe.toml").write_text(recipe_toml(Recipe()))
    variant = Variant(
        backend="onnxruntime-cpu",
        path="model.onnx",
        inputs=(TensorSpec(name="numbers", dtype="float32", shape=("B", 2)),),
        outputs=(TensorSpec(name="sum", dtype="float32", shape=("B", 1)),),
        runtime=RuntimeSettings(threads=1, graph_optimization="disabled"),
        providers=("CPUExecutionProvider",),
    )
    records = {path.name: FileRecord(sha256=file_sha256(path), bytes=path.stat().st_size) for path in folder.iterdir()}
    manifest = Manifest(
        tool_version="0",
        name="one-and-one",
        kind=KIND,
        task="addition",
        architecture="matmul",
        precision="fp32",
        target=TargetRecord(name="here", arch=host_arch(), isa=()),
        models={MODEL: ModelRecord(variants=(variant,))},
        settings={"numbers": 2},
        files=records,
    )
    write_manifest(manifest, folder)
    return folder


def _model(error: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["numbers", "ones"], ["exact"]),
        helper.make_node("Add", ["exact", "error"], ["sum"]),
    ]
    constants = {"ones": np.ones((2, 1), dtype=np.float32), "error": np.array([error], dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "adder",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["B", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _reference() -> bytes:
    buffer = io.BytesIO()
    samples = {0: (1.0, 2.0), 1: (-3.0, 0.5)}
    arrays = {f"{i}/in/numbers": np.array([pair], dtype=np.float32) for i, pair in samples.items()}
    arrays |= {f"{i}/out/0": np.array([[sum(pair)]], dtype=np.float32) for i, pair in samples.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
