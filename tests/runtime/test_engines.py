"""A bundle of an engine is refused where it cannot run, by the name of what is missing, and never runs on the CPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgecompress.bundle import write_bundle
from edgecompress.cli import main
from edgecompress.errors import BundleError, HostError
from edgecompress.formats.manifest import open_bundle, write_manifest
from edgecompress.runtime import load
from edgecompress.runtime.engines import DRIVER
from edgecompress.types.bundle import EngineRecord, Manifest, ShapeRange

VERSION = "1.7.1.116"


@pytest.fixture
def bundle(minilm_bundle: Path, tmp_path: Path) -> Path:
    """A whole bundle, whose graph would run here, that says of itself that it is an engine."""
    manifest, folder = open_bundle(minilm_bundle)
    files: dict[str, Path | str | bytes] = {name: folder / name for name in manifest.files}
    made = replace(
        manifest,
        target=replace(manifest.target, name="rtx-4090", backend="tensorrt-rtx", providers=(), isa=()),
        engine=EngineRecord(
            path="model.engine",
            layers="model.engine.layers.txt",
            builder="tensorrt-rtx",
            version=VERSION,
            os="linux",
            compute_capability=(8, 9),
            profile={"input_ids": ShapeRange(smallest=(1, 1), usual=(8, 128), largest=(32, 256))},
            weights_bytes=1,
        ),
    )
    path = tmp_path / "engine.bundle"
    files |= {"model.engine": b"an engine", "model.engine.layers.txt": "Name: x"}
    write_bundle(path, manifest_without_files=made, files=files, measurements=None, force=False)
    return path


def driver(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int], status: int = 0) -> None:
    """Put a driver in the place of libcuda, with a GPU for each compute capability."""

    def fill(reference: Any, value: int) -> int:
        reference._obj.value = value
        return 0

    fake = SimpleNamespace(
        cuInit=lambda _: status,
        cuDeviceGetCount=lambda count: fill(count, len(capabilities)),
        cuDeviceGet=lambda device, index: fill(device, index),
        cuDeviceGetAttribute=lambda value, attribute, device: fill(value, capabilities[device.value][attribute - 75]),
    )
    load_library = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *a, **kw: fake if name == DRIVER else load_library(name, *a, **kw))


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    look_up = importlib.metadata.version

    def answer(name: str) -> str:
        if name != "tensorrt-rtx":
            return look_up(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", answer)


def refusal(bundle: Path, **options: bool) -> HostError:
    with pytest.raises(HostError) as caught:
        load(bundle, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    return caught.value


def test_without_a_driver_its_library_is_named(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def absent(name: str, *_: object, **__: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    error = refusal(bundle)
    assert "its driver's libcuda.so.1 is not on this machine" in error.message
    assert "compute capability 8.9" in error.way_out


@pytest.mark.parametrize("status", [0, 100])
def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, bundle: Path, status: int) -> None:
    driver(monkeypatch, status=status)
    assert "libcuda.so.1 finds none" in refusal(bundle).message


def test_another_gpu(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    driver(monkeypatch, (8, 6), (12, 0))
    assert "is for compute capability 8.9, and here is 8.6, 12.0" in refusal(bundle).message


def test_a_missing_library_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    driver(monkeypatch, (8, 6), (8, 9))
    installed(monkeypatch, None)
    error = refusal(bundle)
    assert "needs libtensorrt_rtx.so.1, which is not installed" in error.message
    assert error.way_out == f"pip install tensorrt-rtx=={VERSION}"


def test_another_version_is_refused_with_the_command_that_rebuilds(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    driver(monkeypatch, (8, 9))
    installed(monkeypatch, "1.8.0.1")
    error = refusal(bundle)
    assert f"built by tensorrt-rtx {VERSION} and 1.8.0.1 is installed" in error.message
    assert "edgecompress build … --force" in error.way_out


def test_where_all_is_there_it_says_that_engines_are_only_built_yet(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    driver(monkeypatch, (8, 9))
    installed(monkeypatch, VERSION)
    assert "builds engines and does not run them yet" in refusal(bundle).message


def test_nothing_falls_back_to_the_graph_beside_the_engine(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver(monkeypatch)
    assert "libcuda.so.1 finds none" in refusal(bundle, allow_mismatch=True).message
    for arguments in (
        ["run", str(bundle), "a text"],
        ["verify", str(bundle)],
        ["verify", str(bundle), "--allow-mismatch"],
    ):
        assert main(arguments) == HostError.exit_code
        assert "libcuda.so.1 finds none" in capsys.readouterr().err


def test_inspect_shows_what_the_engine_needs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert f"compute capability 8.9, tensorrt-rtx {VERSION}, built on linux; input_ids 1×1 to 32×256" in shown


def test_the_manifest_survives_its_file(bundle: Path) -> None:
    manifest, _ = open_bundle(bundle)
    assert isinstance(manifest, Manifest)
    assert manifest.engine is not None
    assert manifest.engine.compute_capability == (8, 9)
    assert manifest.engine.profile["input_ids"].largest == (32, 256)


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
