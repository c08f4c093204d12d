"""What is planned for a build on the device, and the build itself with a stand-in for TensorRT."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompress.backends.tensorrt.engine import build_plan, require_device, trtexec_line
from edgecompress.cli import main
from edgecompress.errors import BundleError, HostError, RecipeError
from edgecompress.export.plan import plan
from edgecompress.formats import gpus
from edgecompress.formats.manifest import file_sha256, open_bundle
from edgecompress.targets import find_target
from edgecompress.types.bundle import BuildPlan, ShapeRange
from edgecompress.types.gpu import Gpu
from edgecompress.types.recipe import EngineRecipe, QuantizeRecipe, Recipe, StudentRecipe
from tests.shared_captures import capture_anew
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

ORIN = Gpu(name="Orin", memory_bytes=64 << 30, compute_capability=(8, 7))
H200 = Gpu(name="NVIDIA H200", memory_bytes=141 << 30, compute_capability=(9, 0))
PROFILE = {"input_ids": ShapeRange(smallest=(1, 1), usual=(8, 50), largest=(32, 100))}
PLAN = BuildPlan(
    builder="tensorrt",
    minimum_version="10.14",
    compute_capability=(8, 7),
    profile=PROFILE,
    workspace_bytes=256 << 20,
    timing_cache="timing.cache",
)
ASKED = ["--target", "jetson-agx-orin", "--precision", "fp16", "--calibration-samples", "8"]

# A builder that "builds" by writing down what it was asked for, and times what no cache knows.
STAND_IN = """
import json, os, time
__version__ = "10.16.1"
class ILogger:
    ERROR, INTERNAL_ERROR = 1, 2
class Value:
    STRONGLY_TYPED = 1
    WORKSPACE, DETAILED, JSON = "workspace", "detailed", "json"
    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = "none", "ampere", "same"
    VERSION_COMPATIBLE = "versions"
NetworkDefinitionCreationFlag = MemoryPoolType = ProfilingVerbosity = LayerInformationFormat = Value
HardwareCompatibilityLevel = BuilderFlag = Value
class IProgressMonitor:
    pass
class Cache:
    def __init__(self, blob): self.blob = blob
    def serialize(self): return self.blob + b"timed"
class Profile:
    def __init__(self): self.shapes = {}
    def set_shape(self, name, *shapes): self.shapes[name] = shapes
class Config:
    def __init__(self): self.said = {}
    def set_memory_pool_limit(self, pool, size): self.said[pool] = size
    def set_flag(self, flag): self.said["flag"] = flag
    def add_optimization_profile(self, profile): self.said["profile"] = profile.shapes
    def create_timing_cache(self, blob): return Cache(bytes(blob))
    def set_timing_cache(self, cache, ignore_mismatch): self.cache = cache
    def get_timing_cache(self): return self.cache
class Builder:
    def __init__(self, log): self.log = log
    def create_network(self, flags):
        assert flags == 2, "strongly typed"
        return object()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        case = os.environ.get("STAND_IN", "")
        config.progress_monitor.phase_start("Building", None, 2)
        if case == "memory":
            self.log.log(1, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
            return None
        if case == "crash":
            os.abort()
        for step in range(200 if case == "slow" else 2):
            if case == "slow": time.sleep(0.1)
            if not config.progress_monitor.step_complete("Building", step): return None
        config.said["hardware"] = config.hardware_compatibility_level
        config.said["device"] = os.environ["CUDA_VISIBLE_DEVICES"]
        self.log.log(0, "Total Weights Memory: %d bytes" % (10**12 if case == "wide" else 100))
        return json.dumps(config.said).encode()
class ParserError:
    def node_name(self): return "block.1/Attention"
    def node_operator(self): return "Attention"
    def desc(self): return "no importer"
class OnnxParser:
    num_errors = 1
    def __init__(self, network, log): pass
    def parse_from_file(self, path): return os.environ.get("STAND_IN") != "refused"
    def get_error(self, index): return ParserError()
class Runtime:
    def __init__(self, log): pass
    def deserialize_cuda_engine(self, blob): return self
    def create_engine_inspector(self): return self
    def get_engine_information(self, form): return '{"Layers": []}'
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "bert", "bert")


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "orin.bundle"
    assert main(["export", str(student), *ASKED, "-o", str(path)]) == 0
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """One that a build may change."""
    return Path(shutil.copytree(exported, tmp_path / "orin.bundle"))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an Orin and the stand-in."""
    site = tmp_path / "site"
    (site / "tensorrt").mkdir(parents=True)
    (site / "tensorrt" / "__init__.py").write_text(STAND_IN)
    (site / "tensorrt-10.16.1.dist-info").mkdir()
    (site / "tensorrt-10.16.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.16.1\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, sys.path)]))
    monkeypatch.setattr(gpus, "detect_gpus", lambda: [ORIN])
    return site


def test_two_exports_are_the_same_bytes(
    bundle: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture_anew(monkeypatch)
    again = tmp_path / "again.bundle"
    assert main(["export", str(student), *ASKED, "-o", str(again)]) == 0
    names = sorted(open_bundle(bundle)[0].files)
    assert names == sorted(open_bundle(again)[0].files)
    assert [file_sha256(bundle / n) for n in names] == [file_sha256(again / n) for n in names]
    assert file_sha256(bundle / "manifest.json") == file_sha256(again / "manifest.json")


def test_the_plan_says_what_the_device_needs(bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    assert manifest.variant().engine is None
    assert manifest.variant().build is not None
    assert (manifest.variant().build.builder, manifest.variant().build.minimum_version) == ("tensorrt", "10.14")
    assert manifest.variant().build.compute_capability == (8, 7)
    assert manifest.variant().build.profile["input_ids"] == PROFILE["input_ids"]
    assert not [name for name in manifest.files if name.endswith(".engine")]


def test_the_line_for_trtexec_says_the_same() -> None:
    plan_ = replace(PLAN, hardware_compatibility="same-compute-capability", version_compatible=True)
    assert trtexec_line(plan_, "model.onnx").split() == [
        "trtexec", "--onnx=model.onnx", "--saveEngine=model.engine", "--stronglyTyped", "--minShapes=input_ids:1x1",
        "--optShapes=input_ids:8x50", "--maxShapes=input_ids:32x100", "--memPoolSize=workspace:256",
        "--timingCacheFile=timing.cache", "--profilingVerbosity=detailed",
        "--exportLayerInfo=model.engine.layers.json", "--skipInference",
        "--hardwareCompatibilityLevel=sameComputeCapability", "--versionCompatible",
    ]  # fmt: skip


def test_choices_have_their_price(bundle: Path) -> None:
    from edgecompress.types.graph import Graph

    graph = Graph(path=bundle / "model.onnx", stage="lowered", precision="fp16")
    dear = EngineRecipe(hardware_compatibility="ampere-plus", version_compatible=True)
    made = build_plan(graph, find_target("h200"), dear, PROFILE)
    assert [price.partition(":")[0] for price in made.prices] == ["ampere-plus", "any version"]
    assert all("slower" in price for price in made.prices)
    assert build_plan(graph, find_target("h200"), EngineRecipe(), PROFILE).prices == ()
    with pytest.raises(HostError, match="JetPack does not support it"):
        build_plan(graph, find_target("jetson-agx-orin"), dear, PROFILE)


def test_compatibility_is_tensorrts(student: Path) -> None:
    recipe = Recipe(
        target="rtx-4090",
        backend="onnxruntime",
        precision="fp16",
        student=StudentRecipe(source=str(student)),
        engine=EngineRecipe(version_compatible=True),
    )
    with pytest.raises(RecipeError, match="do not apply to"):
        plan(recipe)
    job = plan(replace(recipe, target="h200", backend="tensorrt"))
    assert [stage.name for stage in job.stages][-2:] == ["plan", "bundle"]
    with pytest.raises(RecipeError, match="TensorRT supports symmetric weights only"):
        plan(replace(recipe, target="h200", backend="tensorrt", quantize=QuantizeRecipe(symmetric=False)))


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        ([], None, "this machine has no GPU"),
        ([H200], None, "is for compute capability 8.7, which GPU 0 does not have: 0: NVIDIA H200, 9.0"),
        ([ORIN, ORIN], None, "several GPUs match: 0: Orin, 8.7; 1: Orin, 8.7"),
        ([ORIN], 3, "there is no GPU 3"),
        ([ORIN, H200], 1, "which GPU 1 does not have"),
        ([H200, ORIN], None, "the package tensorrt, with libnvinfer, is not installed"),
    ],
)
def test_a_device_that_will_not_do_is_refused(gpus: list[Gpu], device: int | None, message: str) -> None:
    with pytest.raises(HostError, match=message) as caught:
        require_device(PLAN, gpus, device, "model.onnx")
    assert caught.value.exit_code == 3


def test_an_older_tensorrt_is_refused(device: Path) -> None:
    with pytest.raises(HostError, match=r"TensorRT 10\.16\.1 does not support the ops") as caught:
        require_device(replace(PLAN, minimum_version="11.0"), [ORIN], None, "model.onnx")
    assert caught.value.exit_code == 3
    assert require_device(PLAN, [H200, ORIN], None, "model.onnx") == (1, ORIN)


def test_the_build_ends_in_the_bundle(bundle: Path, device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: record.sha256 for name, record in open_bundle(bundle)[0].files.items()}
    assert main(["build", str(bundle)]) == 0
    assert "tensorrt 10.16.1, built on linux for Orin" in capsys.readouterr().out
    manifest, folder = open_bundle(bundle)
    engine = manifest.variant().engine
    assert engine is not None
    assert (engine.gpu, engine.compute_capability, engine.version) == ("Orin", (8, 7), "10.16.1")
    asked = json.loads((folder / "model.engine").read_text())
    assert (asked["workspace"], asked["hardware"], asked["device"]) == (1024 << 20, "none", "0")
    assert asked["profile"]["input_ids"] == [[1, 1], [8, 50], [32, 100]]
    assert {n: r.sha256 for n, r in manifest.files.items() if n in before} == before
    assert set(manifest.files) - set(before) == {
        "model.engine",
        "model.engine.layers.json",
        "timing.cache",
        "engine.intoto.json",
    }
    assert (folder / "timing.cache").read_bytes() == b"timed"
    assert main(["build", str(bundle)]) == 2, "it has one already"
    assert main(["build", str(bundle), "--force"]) == 0
    assert (folder / "timing.cache").read_bytes() == b"timedtimed", "what was timed once is kept"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("refused", "rejects the fp16 graph:\n  block.1/Attention (Attention): no importer"),
        ("memory", "smaller --engine-batch"),
        ("crash", "it was killed by SIGABRT"),
        ("wide", "stored them in a wider type"),
    ],
)
def test_a_build_that_fails_leaves_the_bundle_as_it_was(
    bundle: Path,
    device: Path,
    case: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STAND_IN", case)
    before = file_sha256(bundle / "manifest.json")
    assert main(["build", str(bundle)]) == 3
    assert message in capsys.readouterr().err
    assert file_sha256(bundle / "manifest.json") == before
    assert sorted(path.name for path in bundle.parent.iterdir() if path.name.startswith(".")) == []


def test_without_a_gpu_it_says_how_else(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(bundle)]) == 3
    assert "trtexec --onnx=model.onnx" in capsys.readouterr().err


def test_what_is_not_built_does_not_run(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(bundle), "text", "--allow-mismatch"]) == 3
    assert "is not built yet" in capsys.readouterr().err


def test_a_bundle_without_an_engine_is_refused(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cpu.bundle"
    assert main(["export", str(student), "--precision", "fp32", "--kernels", "none", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["build", str(path)]) == BundleError.exit_code
    assert "has no engine to build: its backend is onnxruntime" in capsys.readouterr().err


def test_ctrl_c_ends_the_build_at_its_next_step(
    bundle: Path, device: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN", "slow")  # twenty seconds, if it went on
    before = file_sha256(bundle / "manifest.json")
    previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        assert main(["build", str(bundle)]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert "interrupted" in capsys.readouterr().err
    assert file_sha256(bundle / "manifest.json") == before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []
