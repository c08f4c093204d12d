"""A kind and a backend of somebody else's: two numbers in, their sum out. Nothing of ours knows of them."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress import registry
from edgecompress.cli import main
from edgecompress.formats.codec import dumps, from_jsonable
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
from edgecompress.types.profile import Comparison, Profile
from edgecompress.types.report import Fidelity, Report

_KIND = """
import time
import numpy as np
from edgecompress.errors import UsageError
from edgecompress.runtime.subject import Prepared, Side
from edgecompress.types.workload import CALL, GraphRun, Phase, Workload

COMPARED = "4"

def default_workloads(manifest): return "1,4"

def parse(text, manifest):
    if not text.isdigit():
        raise UsageError(f"'{text}' is no number of pairs", hint="Give --shapes 4.")
    return Workload(name=text, batch=int(text))

def phases(manifest, workload):
    return {CALL: Phase(runs=(GraphRun(sizes={"batch": workload.batch}),))}

def feed(workload):
    return {name: np.arange(workload.batch, dtype=np.float32) for name in ("a", "b")}

class Pairs:
    def __init__(self, source):
        self.manifest, self.threads, self.model = source.manifest, source.threads, source.open()

    def prepare(self, workload, new_tokens):
        stages, arrays = {"add": []}, feed(workload)

        def call():
            began = time.perf_counter()
            self.model.run(arrays)
            stages["add"].append(time.perf_counter() - began)

        return Prepared(call=call, stages=stages, items=workload.batch, phases={CALL: ("add", 1)})

    def offline(self, workload, items): return lambda: self.model.run(feed(workload))
    def phases(self, workload): return {CALL: lambda: self.model.run(feed(workload))}
    def close(self): self.model.close()

open_subject = Pairs

def inputs(workload, manifests): return feed(workload)

def side(source):
    model = source.open()
    return Side(lambda arrays: model.run(arrays)[0][:, None], model.close)
"""
_RUNTIME = """
class Adder:
    def __init__(self, source):
        self.manifest, self.threads, self.model = source.manifest, source.threads, source.open()
    def __enter__(self): return self
    def __exit__(self, *_): self.close()
    def close(self): self.model.close()

open_bundle = Adder

def first_call(model): model.model.run({"a": 1.0, "b": 2.0})
"""
_BACKEND = """
class Sum:
    def __init__(self, variant): self.inputs, self.outputs = variant.inputs, variant.outputs
    def run(self, feed, wanted=None): return [feed["a"] + feed["b"]]
    def close(self): pass

PARALLEL_SESSIONS = False

def open_model(source, name, threads): return Sum(source.variant(name))
def open_cached_model(source, name, threads): raise NotImplementedError
def device_of(source, name): return None
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both packages, for this process and for those that it starts."""
    site = tmp_path / "site"
    for package, modules in {
        "their_kind": {"profile": _KIND, "runtime": _RUNTIME},
        "their_backend": {"load": _BACKEND},
    }.items():
        (site / package).mkdir(parents=True)
        for name, source in {"__init__": "", **modules}.items():
            (site / package / f"{name}.py").write_text(source)
    info = site / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[edgecompress.kinds]\npairs = their_kind\n\n[edgecompress.backends]\nadder = their_backend\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *(path for path in sys.path if path)]))
    importlib.invalidate_caches()
    registry.plug_ins.cache_clear()
    yield
    registry.plug_ins.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("their_kind", "their_backend")]:
        del sys.modules[name]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "sum.bundle"
    folder.mkdir()
    (folder / "sum.txt").write_text("a + b")
    (folder / "report.json").write_text(dumps(Report(fidelity=Fidelity(samples=1, mean_cosine=1.0))))
    variant = Variant(
        backend="adder",
        path="sum.txt",
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=("batch",)) for name in ("a", "b")),
        outputs=(TensorSpec(name="sum", dtype="float32", shape=("batch",)),),
        runtime=RuntimeSettings(threads=1, graph_optimization="disabled"),
    )
    manifest = Manifest(
        tool_version="1",
        name="sum",
        kind="pairs",
        task="adding",
        architecture="",
        precision="float32",
        target=TargetRecord(name="local", arch=host_arch(), isa=()),
        models={MODEL: ModelRecord(variants=(variant,))},
        files={
            name: FileRecord(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
            for name in ("sum.txt", "report.json")
        },
    )
    write_manifest(manifest, folder)
    return folder


@pytest.mark.usefixtures("installed")
def test_it_is_profiled(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--percentile", "50", "--duration", "0.05"]
    assert main(["profile", str(bundle), "--json", *flags]) == 0
    found = from_jsonable(Profile, json.loads(capsys.readouterr().out))
    assert [(m.workload, m.scenario) for m in found.measurements] == [("1", "single-stream"), ("4", "multi-stream")]
    for m in found.measurements:
        assert [stage.name for stage in m.stages] == ["add"]
        assert m.tokens is None
    assert found.cold_start is not None
    assert found.cold_start.first_ms >= 0
    assert any("operators are not measurable here" in remark for remark in found.remarks)
    assert main(["profile", str(bundle), "--shapes", "1x2", *flags]) == 2
    assert "'1x2' is no number of pairs" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
def test_it_is_compared(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [str(bundle), str(bundle)]
    assert main(["compare", *sides, "--launches", "8", "--pairs", "5", "--threads", "1", "--json"]) == 0
    found = from_jsonable(Comparison, json.loads(capsys.readouterr().out))
    assert [row.workload for row in found.rows] == ["4", "4"]
    assert found.rows[1].agreement == pytest.approx(0.75)  # a pair of zeros has no direction
