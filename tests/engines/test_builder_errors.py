"""What a user is told when no engine can be built, with a stand-in for the builder: nothing needs to be installed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from edgecompress.backends.tensorrt_rtx import engine as tensorrt_rtx
from edgecompress.backends.tensorrt_rtx.engine import build_engine, require_builder
from edgecompress.errors import EdgeCompressError, EngineError, HostError
from edgecompress.targets import find_target
from edgecompress.types.bundle import ShapeRange
from edgecompress.types.graph import Graph
from tests.engines.test_engine_layers import account, int8_graph

VERSION = "1.7.1"
PROFILE = {"x": ShapeRange(smallest=(1, 1, 128), usual=(1, 8, 128), largest=(4, 32, 128))}


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    path = tmp_path / "typed-int8-static.onnx"
    ir.save(int8_graph(), path)
    return Graph(path=path, stage="lowered", precision="int8-static")


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = SimpleNamespace(CURRENT=0, SM86=1, SM89=2, SM120=3)
    monkeypatch.setattr(
        tensorrt_rtx, "_builder", lambda: SimpleNamespace(__version__=VERSION, ComputeCapability=capabilities)
    )


def builder_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Put a shell script in the place of Python: its last argument is the job."""
    path = tmp_path / "builder.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(tensorrt_rtx.sys, "executable", str(path))


def builder_that_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: dict[str, Any]) -> None:
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps(said))
    builder_that(monkeypatch, tmp_path, f"cp {answer} {tmp_path}/model.said.json; echo built > {tmp_path}/model.engine")


def build(graph: Graph, tmp_path: Path) -> tensorrt_rtx.Engine:
    return build_engine(graph, find_target("rtx-4090"), PROFILE, tmp_path)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(HostError, match="tensorrt-rtx, which builds the engine, is not installed") as caught:
        require_builder(find_target("rtx-4090"))
    assert caught.value.exit_code == 3
    assert "pip install 'edgecompress[tensorrt-rtx]'" in caught.value.hint


def test_a_package_that_lacks_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise ImportError("libtensorrt_rtx.so.1: cannot open shared object file")

    target = find_target("rtx-4090")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(HostError, match=r"cannot be loaded: libtensorrt_rtx\.so\.1") as caught:
        require_builder(target)
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("_installed")
def test_what_was_built_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph) -> None:
    builder_that_says(monkeypatch, tmp_path, {"layers": account("Int8", "Int8"), "weights_bytes": 16_800})
    made = build(graph, tmp_path)
    assert (made.record.version, made.record.compute_capability) == (VERSION, (8, 9))
    assert made.record.weights_bytes == 16_800
    assert made.layers.read_text(encoding="utf-8") == account("Int8", "Int8")
    job = json.loads((tmp_path / "model.job.json").read_text())
    assert job["capability"] == "SM89"
    assert job["profile"]["x"] == {"smallest": [1, 1, 128], "usual": [1, 8, 128], "largest": [4, 32, 128]}


@pytest.mark.usefixtures("_installed")
def test_the_parsers_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph) -> None:
    refused = [[f"layer.{i}/Whirl", "Whirl", "no importer"] for i in range(7)]
    builder_that_says(monkeypatch, tmp_path, {"refused": refused})
    with pytest.raises(EngineError) as caught:
        build(graph, tmp_path)
    lines = caught.value.message.splitlines()
    assert lines[0] == f"the parser of TensorRT-RTX {VERSION} rejects the int8-static graph:"
    assert lines[1] == "  layer.0/Whirl (Whirl): no importer"
    assert lines[-1] == "  and 2 more"


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": "no kernel for node 7"}, "cannot build the int8-static graph: no kernel for node 7"),
        ({"layers": "", "weights_bytes": 16_800}, "does not describe the engine"),
        ({"layers": "Name: x", "weights_bytes": None}, "does not describe the engine"),
        (
            {"layers": account("Half", "Half"), "weights_bytes": 16_800},
            "1 of 1 products of the int8-static graph in a wider type",
        ),
        ({"layers": account("Int8", "Int8"), "weights_bytes": 33_000}, "stored them in a wider type"),
    ],
)
def test_an_engine_that_cannot_be_vouched_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph, said: dict[str, Any], message: str
) -> None:
    builder_that_says(monkeypatch, tmp_path, said)
    with pytest.raises(EngineError, match=message) as caught:
        build(graph, tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -s SEGV $$", "failed to build the int8-static graph: it was killed by SIGSEGV"),
        ("echo 'out of memory' >&2; exit 1", "failed to build the int8-static graph: out of memory"),
        ("exit 0", "failed to build the int8-static graph: the builder gives no reason"),
    ],
)
def test_a_builder_that_breaks_off_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph, script: str, message: str
) -> None:
    builder_that(monkeypatch, tmp_path, script)
    with pytest.raises(EngineError, match=message) as caught:
        build(graph, tmp_path)
    assert isinstance(caught.value, EdgeCompressError)
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("_installed")
def test_an_answer_of_an_earlier_build_is_not_taken_for_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph
) -> None:
    builder_that_says(monkeypatch, tmp_path, {"layers": account("Int8", "Int8"), "weights_bytes": 16_800})
    build(graph, tmp_path)
    builder_that(monkeypatch, tmp_path, "exit 0")
    with pytest.raises(EngineError, match="failed to build"):
        build(graph, tmp_path)
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.usefixtures("_installed")
def test_ctrl_c_ends_the_builder_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph) -> None:
    builder_that(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")

    def interrupt_once_it_runs() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_once_it_runs, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        build(graph, tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)  # neither running nor a zombie
    assert not (tmp_path / "model.engine").exists()
