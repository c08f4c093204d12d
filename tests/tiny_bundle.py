"""Writes bundles of tiny hand-built graphs, for this machine and one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompress.formats.codec import to_jsonable
from edgecompress.formats.cpu import host_arch
from edgecompress.formats.manifest import file_sha256, write_manifest
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


def write_tiny_bundle(
    folder: Path,
    files: Mapping[str, Path | bytes],
    *,
    name: str,
    kind: str,
    task: str,
    inputs: Sequence[str],
    output: TensorSpec,
    settings: Any,
) -> Path:
    """A bundle of ``files``, among them model.onnx and tokenizer.json; its folder. ``inputs``: int64 [B, T] each."""
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    variant = Variant(
        backend="onnxruntime-cpu",
        path="model.onnx",
        inputs=tuple(TensorSpec(name=each, dtype="int64", shape=("B", "T")) for each in inputs),
        outputs=(output,),
        runtime=RuntimeSettings(threads=1, graph_optimization="disabled"),
        providers=("CPUExecutionProvider",),
    )
    manifest = Manifest(
        tool_version="0",
        name=name,
        kind=kind,
        task=task,
        architecture="tiny",
        precision="fp32",
        target=TargetRecord(name="here", arch=host_arch(), isa=()),
        models={MODEL: ModelRecord(variants=(variant,))},
        settings=to_jsonable(settings),
        files={
            file: FileRecord(sha256=file_sha256(folder / file), bytes=(folder / file).stat().st_size) for file in files
        },
    )
    write_manifest(manifest, folder)
    return folder
