"""Every name of TensorRT's bindings that we use, to build and to run, is in them: of 10, of 11, and of TensorRT-RTX.

The names are read off the source, so that a new one is held against the bindings without being listed here; what an
object is of is the one thing that is. The bindings of TensorRT are the real ones (see tests/engines/bindings.py).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from edgecompress.backends.tensorrt import builder_process as tensorrt_process
from edgecompress.backends.tensorrt_rtx import builder_process as rtx_process
from edgecompress.runtime import engine_file, engine_runner
from edgecompress.types.recipe import HARDWARE_COMPATIBILITY
from tests.engines.bindings import FOLDER, MAJORS, ask

# A variable of the builders' processes -> the class of the bindings that it is of.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "ranges": "IOptimizationProfile",
    "timed": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "e": "ParserError",
}
OURS = {"json", "os", "re", "sys", "signal", "importlib", "log", "self", "path", "match", "message", "stopped", "job"}
# Of the runtime: what is asked of TensorRT-RTX alone, where it has it, and of versions that know caches.
RUNTIME = (Path(engine_file.__file__), Path(engine_runner.__file__))
OF_RTX_ALONE = {
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
}
CLASSES_AT_RUN = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "trt": "",
}
MONITOR = ("phase_start", "step_complete", "phase_finish")


def names_used(path: Path) -> set[str]:
    """Dotted names below the module, "MemoryPoolType.WORKSPACE" or "IBuilderConfig.set_flag"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        chain = [node.attr]
        base = node.value
        while isinstance(base, ast.Attribute):
            chain.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            continue
        if base.id == "trt":
            found.add(".".join(chain))
        elif base.id in CLASSES:
            found.add(f"{CLASSES[base.id]}.{chain[0]}")
        else:
            assert base.id in OURS or base.id.lstrip("_")[0].isupper(), f"{path.name}: what is '{base.id}' of?"
    return found


def names_at_run() -> set[str]:
    """Of the runtime's two modules; everything that is of none of CLASSES_AT_RUN is ours."""
    found = {"ICudaEngine.get_aliased_input_tensor", "IRuntimeCache.serialize", "IRuntimeCache.deserialize"}
    for path in RUNTIME:
        text = path.read_text(encoding="utf-8")
        assert "get_aliased_input_tensor" in text or path is not RUNTIME[0]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute):
                chain, base = [node.attr], node.value
                while isinstance(base, ast.Attribute):
                    chain.insert(0, base.attr)
                    base = base.value
                if isinstance(base, ast.Name) and base.id in CLASSES_AT_RUN:
                    of = CLASSES_AT_RUN[base.id]
                    found.add(f"{of}.{chain[0]}" if of else ".".join(chain))
    return found


def held_against(answers: dict[str, str | None], names: set[str]) -> None:
    assert names
    assert set(answers) >= names, "every name was asked for"
    assert sorted(name for name in names if answers[name] is None) == []


@pytest.fixture(params=MAJORS)
def major(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    if not (FOLDER / str(number) / ".unpacked").exists():
        pytest.skip(f"the bindings of TensorRT {number} are not unpacked: make test does it")
    return number


def test_every_name_that_builds_is_in_tensorrt(major: int, tmp_path: Path) -> None:
    names = names_used(Path(tensorrt_process.__file__))
    assert {"BuilderFlag.VERSION_COMPATIBLE", "IBuilderConfig.set_timing_cache", "ParserError.node_name"} <= names
    levels = {f"HardwareCompatibilityLevel.{level.upper().replace('-', '_')}" for level in HARDWARE_COMPATIBILITY}
    monitor = {f"IProgressMonitor.{name}" for name in MONITOR}
    names |= levels | monitor
    answers = ask("tensorrt_bindings", names | {"BuilderFlag.FP16", "IBuilderConfig.int8_calibrator"}, tmp_path, major)
    held_against(answers, names)
    assert str(answers["__version__"]).startswith(f"{major}.")
    # What each method takes, by the names that we give it or override it with.
    for name, parameters in {
        "IBuilderConfig.set_timing_cache": ("ignore_mismatch",),
        "IProgressMonitor.phase_start": ("phase_name", "parent_phase", "num_steps"),
        "IProgressMonitor.step_complete": ("phase_name", "step"),
        "IProgressMonitor.phase_finish": ("phase_name",),
    }.items():
        said = answers[name]
        assert said is not None
        assert all(f"{parameter}:" in said for parameter in parameters), said
    # Why precision is in the graph: 11 has neither flags nor calibrators any more.
    gone = {name for name in ("BuilderFlag.FP16", "IBuilderConfig.int8_calibrator") if answers[name] is None}
    assert gone == (set() if major == 10 else {"BuilderFlag.FP16", "IBuilderConfig.int8_calibrator"})


def test_every_name_that_builds_is_in_tensorrt_rtx(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgecompress[tensorrt-rtx]'")
    names = names_used(Path(rtx_process.__file__))
    assert "ComputeCapability" in names
    held_against(ask("tensorrt_rtx", names | {"ComputeCapability.SM86"}, tmp_path), names | {"ComputeCapability.SM86"})


def test_every_name_that_runs_is_in_tensorrt(major: int, tmp_path: Path) -> None:
    names = names_at_run()
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "TensorIOMode.INPUT"} <= names
    assert names >= OF_RTX_ALONE
    of_both = {name for name in names - OF_RTX_ALONE if not name.startswith(("IRuntimeCache.", "CudaGraph"))}
    dtypes = {f"DataType.{name}" for name in engine_file._DTYPES}
    answers = ask("tensorrt_bindings", of_both | dtypes | {"CudaGraphStrategy"}, tmp_path, major)
    held_against(answers, of_both | dtypes)
    assert answers["CudaGraphStrategy"] is None, "that is how TensorRT-RTX is told apart"


def test_every_name_that_runs_is_in_tensorrt_rtx(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgecompress[tensorrt-rtx]'")
    names = names_at_run()
    held_against(ask("tensorrt_rtx", names, tmp_path), names)


def test_a_name_that_is_not_there_is_noticed(major: int, tmp_path: Path) -> None:
    answers = ask("tensorrt_bindings", {"BuilderFlag.NEVER_WAS", "Builder.build_serialized_network"}, tmp_path, major)
    assert answers["BuilderFlag.NEVER_WAS"] is None
    with pytest.raises(AssertionError):
        held_against(answers, {"BuilderFlag.NEVER_WAS"})
