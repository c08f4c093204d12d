"""Bundles of engines for the doubles of :mod:`tests.runtime.fake_tensorrt`, exported as any other, for an H200."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main
from edgecompress.export.bundle import add_engine
from edgecompress.formats.manifest import open_bundle
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.runtime import engine_file as engine_file_module
from edgecompress.runtime.cuda import choice
from edgecompress.types.bundle import EngineRecord, with_variant
from edgecompress.types.graph import Graph
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import engine_file, fake_tensorrt

H200 = ("NVIDIA H200", (9, 0))
VERSION = "11.4.0"


def engine_bundle(student: Path, path: Path, *asked: str) -> Path:
    """``student`` as fp16 with an engine, whose two graphs lie beside the bundle."""
    flags = ["--target", "h200", "--backend", "tensorrt", "--precision", "fp16", "--calibration-samples", "8"]
    assert main(["export", str(student), *flags, *asked, "-o", str(path)]) == 0
    manifest, folder = open_bundle(path)
    variant = manifest.variant()
    beside = path.with_suffix(".graphs")
    beside.mkdir()
    for name in manifest.files:
        if name.startswith(variant.path):
            shutil.copy(folder / name, beside / name)
    typed = Graph(path=beside / variant.path, stage="lowered", precision="fp16")
    runs = rounded_graph(typed, beside)
    build = variant.build
    assert build is not None
    record = EngineRecord(
        path="model.engine",
        layers="model.engine.layers.json",
        builder="tensorrt",
        version=VERSION,
        os="linux",
        compute_capability=(9, 0),
        profile=build.profile,
        weights_bytes=1,
        gpu=H200[0],
    )
    (beside / "model.engine").write_bytes(engine_file(typed.path, runs.path))
    (beside / "model.engine.layers.json").write_text("{}")
    files = {name: beside / name for name in (record.path, record.layers)}
    add_engine(folder, with_variant(manifest, replace(variant, engine=record)), files)
    return path


def altered(bundle: Path, to: Path, engine: bytes | None = None, **changes: Any) -> Path:
    """A copy of the bundle with another record of its engine, or another engine."""
    shutil.copytree(bundle, to)
    manifest, folder = open_bundle(to)
    variant = manifest.variant()
    assert variant.engine is not None
    path = to.with_suffix(".engine")
    path.write_bytes((folder / variant.engine.path).read_bytes() if engine is None else engine)
    build = changes.pop("build", variant.build)
    record = replace(variant.engine, **changes)
    other = replace(variant, engine=record, build=build, backend=record.builder)
    add_engine(folder, with_variant(manifest, other), {record.path: path})
    return to


class Machine:
    """A GPU and TensorRT, in the place of what is here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, tuple[int, int]], memory: int = 1 << 30):
        self._patch = monkeypatch
        self.cuda = FakeCuda(*(gpus or (H200,)), memory=memory)
        monkeypatch.setattr(choice, "open_driver", lambda: self.cuda)
        self.install("tensorrt", VERSION)

    def install(self, package: str, version: str | None, **options: Any) -> None:
        """``version`` of a package with the double of its bindings; None: it is not installed."""
        self.trt = fake_tensorrt(self.cuda, **options)
        look_up, load = importlib.metadata.version, importlib.import_module

        def answer(name: str) -> str:
            if name != package:
                return look_up(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        self._patch.setattr(importlib.metadata, "version", answer)
        module = package.replace("-", "_")
        self._patch.setattr(
            engine_file_module.importlib, "import_module", lambda name: self.trt if name == module else load(name)
        )
