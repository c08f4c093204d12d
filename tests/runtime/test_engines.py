"""A bundle of an engine is refused where it cannot run, by the name of what is missing, and never runs on the CPU."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main
from edgecompress.errors import BundleError, HostError, UsageError
from edgecompress.export.bundle import write_bundle
from edgecompress.formats.manifest import open_bundle, write_manifest
from edgecompress.runtime import engine_file, load
from edgecompress.runtime.cuda import choice, driver
from edgecompress.runtime.cuda.choice import choose
from edgecompress.types.bundle import BuildPlan, EngineRecord, Manifest, ShapeRange, with_variant
from edgecompress.types.gpu import Gpu
from tests.runtime.engine_bundles import Machine
from tests.runtime.fake_cuda import FakeCuda

VERSION = "1.7.1.116"
PLAN = BuildPlan(
    builder="tensorrt",
    minimum_version="10.14",
    compute_capability=(8, 9),
    profile={},
    workspace_bytes=1,
    timing_cache="timing.cache",
)


@pytest.fixture
def bundle(minilm_bundle: Path, tmp_path: Path) -> Path:
    """A whole bundle, whose graph would run here, that says of itself that it is an engine."""
    manifest, folder = open_bundle(minilm_bundle)
    files: dict[str, Path | str | bytes] = {name: folder / name for name in manifest.files}
    record = EngineRecord(
        path="model.engine",
        layers="model.engine.layers.txt",
        builder="tensorrt-rtx",
        version=VERSION,
        os="linux",
        compute_capability=(8, 9),
        profile={"input_ids": ShapeRange(smallest=(1, 1), usual=(8, 128), largest=(32, 256))},
        weights_bytes=1,
    )
    variant = replace(manifest.variant(), backend="tensorrt-rtx", providers=(), engine=record)
    made = with_variant(
        replace(manifest, target=replace(manifest.target, name="rtx-4090", isa=())),
        variant,
    )
    path = tmp_path / "engine.bundle"
    files |= {"model.engine": b"an engine", "model.engine.layers.txt": "Name: x"}
    write_bundle(path, manifest_without_files=made, files=files, measurements=None, force=False)
    return path


def refusal(bundle: Path, **options: Any) -> HostError:
    with pytest.raises(HostError) as caught:
        load(bundle, **options)
    assert caught.value.exit_code == 3
    return caught.value


def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: object, **__: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(driver.open_driver, "__defaults__", (absent,))


def test_without_a_driver_its_library_is_named(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    without_driver(monkeypatch)
    error = refusal(bundle)
    assert "the NVIDIA driver's libcuda.so.1 is not on this machine" in error.message
    assert "Install the NVIDIA driver" in error.hint


def test_without_the_bindings_their_package_is_named(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setattr(driver.open_driver, "__defaults__", (lambda name: None,))
    monkeypatch.setitem(sys.modules, driver.BINDINGS, None)
    error = refusal(bundle)
    assert "the package cuda-bindings is not installed" in error.message
    assert error.hint == "pip install 'edgecompress[gpu]'"


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(driver.importlib, "import_module", lambda name: FakeCuda())
        with pytest.raises(HostError, match=r"libcuda\.so\.1 finds no usable GPU: CUDA_ERROR_NO_DEVICE"):
            driver.open_driver(lambda name: None)
    monkeypatch.setattr(choice, "open_driver", lambda: FakeCuda())
    assert "needs an NVIDIA GPU, but the driver finds none" in refusal(bundle).message


ONE_SORT, ANOTHER, RTX = ("RTX A", (8, 6)), ("RTX B", (12, 0)), ("RTX 4090", (8, 9))


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        ([ONE_SORT, ANOTHER], None, "compute capability 8.9, but this machine has 0: RTX A, 8.6; 1: RTX B, 12.0"),
        ([RTX, RTX], None, "several GPUs match: 0: RTX 4090, 8.9; 1: RTX 4090, 8.9"),
        ([ONE_SORT, RTX], 0, "compute capability 8.9, but this machine has GPU 0, RTX A, 8.6"),
        ([RTX], 1, "there is no GPU 1; this machine has 0: RTX 4090, 8.9"),
        ([RTX], -1, "there is no GPU -1"),
    ],
)
def test_another_gpu(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, gpus: list[Any], device: int | None, message: str
) -> None:
    Machine(monkeypatch, *gpus)
    assert message in refusal(bundle, device=device).message


def test_of_several_gpus_the_one_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    gpus = [Gpu(name=name, memory_bytes=1, compute_capability=capability) for name, capability in (ONE_SORT, RTX, RTX)]
    assert choose(manifest, manifest.variant(), gpus[:2], None) == 1
    assert choose(manifest, manifest.variant(), gpus, 2) == 2


def test_an_engine_of_tensorrt_is_for_the_gpu_that_it_was_built_on(bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    variant = manifest.variant()
    assert variant.engine is not None
    built = replace(variant, engine=replace(variant.engine, builder="tensorrt", gpu="NVIDIA L4"), build=PLAN)
    gpus = [Gpu(name=name, memory_bytes=1, compute_capability=capability) for name, capability in (RTX, ONE_SORT)]
    with pytest.raises(
        HostError, match=r"is for NVIDIA L4 \(compute capability 8\.9\), but this machine has 0"
    ) as caught:
        choose(manifest, built, gpus, None)
    assert "edgecompress build BUNDLE --force" in caught.value.hint
    open_to_all = replace(variant.engine, builder="tensorrt", gpu="")
    same = replace(PLAN, hardware_compatibility="same-compute-capability")
    assert choose(manifest, replace(built, engine=open_to_all, build=same), gpus, None) == 0
    ampere = replace(built, engine=open_to_all, build=replace(PLAN, hardware_compatibility="ampere-plus"))
    assert choose(manifest, ampere, gpus, 1) == 1
    with pytest.raises(HostError, match=r"compute capability 8\.0 and above"):
        choose(manifest, ampere, [replace(gpus[0], compute_capability=(7, 5))], None)


def test_a_missing_library_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    Machine(monkeypatch, RTX).install("tensorrt-rtx", None)
    error = refusal(bundle)
    assert "needs libtensorrt_rtx.so.1, which is not installed" in error.message
    assert error.hint == f"pip install tensorrt-rtx=={VERSION}"


def test_another_version_is_refused_with_the_command_that_rebuilds(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    Machine(monkeypatch, RTX).install("tensorrt-rtx", "1.8.0.1")
    error = refusal(bundle)
    assert f"built by tensorrt-rtx {VERSION}, but 1.8.0.1 is installed" in error.message
    assert "edgecompress build BUNDLE --force" in error.hint


def test_an_engine_for_any_version_takes_later_ones_of_its_major(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    assert engine_file._newer("11.5.0.1", "11.4.2")
    assert not engine_file._newer("11.3.9", "11.4.2")
    assert not engine_file._newer("12.0", "11.4.2")


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    Machine(monkeypatch, RTX).install("tensorrt-rtx", VERSION)

    load = importlib.import_module

    def broken(name: str) -> Any:
        if name == "tensorrt_rtx":
            raise OSError("libtensorrt_rtx.so.1: cannot open shared object file")
        return load(name)

    monkeypatch.setattr(engine_file.importlib, "import_module", broken)
    assert "the package tensorrt-rtx cannot be loaded: libtensorrt_rtx.so.1" in refusal(bundle).message


def test_an_engine_of_another_system(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    Machine(monkeypatch, RTX)
    monkeypatch.setattr(engine_file.platform, "system", lambda: "Windows")
    assert "was built on linux, but this machine runs windows" in refusal(bundle).message


def test_a_bundle_for_a_cpu_takes_no_device(minilm_bundle: Path) -> None:
    with pytest.raises(UsageError, match="a CPU, and cannot run on a GPU"):
        load(minilm_bundle, device=0)


def test_an_engine_that_is_not_built_yet(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    manifest, folder = open_bundle(bundle)
    write_manifest(with_variant(manifest, replace(manifest.variant(), engine=None, build=PLAN)), folder)
    Machine(monkeypatch, RTX)
    error = refusal(bundle)
    assert "is not built yet" in error.message
    assert error.hint == "Run on the device: edgecompress build BUNDLE"


def test_nothing_falls_back_to_the_graph_beside_the_engine(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_driver(monkeypatch)
    assert "libcuda.so.1 is not on this machine" in refusal(bundle, allow_mismatch=True).message
    for arguments in (
        ["run", str(bundle), "a text"],
        ["verify", str(bundle)],
        ["verify", str(bundle), "--allow-mismatch"],
    ):
        assert main(arguments) == HostError.exit_code
        assert "libcuda.so.1 is not on this machine" in capsys.readouterr().err


def test_inspect_shows_what_the_engine_needs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert f"compute capability 8.9, tensorrt-rtx {VERSION}, built on linux; input_ids 1×1 to 32×256" in shown


def test_the_manifest_survives_its_file(bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    assert isinstance(manifest, Manifest)
    engine = manifest.variant().engine
    assert engine is not None
    assert engine.compute_capability == (8, 9)
    assert engine.profile["input_ids"].largest == (32, 256)


def test_a_truncated_engine_is_noticed_before_anything_else(bundle: Path) -> None:
    (bundle / "model.engine").write_bytes(b"an eng")
    with pytest.raises(BundleError, match=r"'model\.engine' is truncated: 6 bytes, 9 expected") as caught:
        load(bundle)
    assert caught.value.exit_code == 7


def test_a_manifest_that_does_not_list_its_engine(bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    files = {name: record for name, record in manifest.files.items() if name != "model.engine"}
    write_manifest(replace(manifest, files=files), bundle)
    with pytest.raises(BundleError, match=r"does not list 'model\.engine', which it needs"):
        load(bundle)
