"""Bundles are complete or refused, written whole or not at all, and byte-identical every time."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompress.errors import BundleError, OutputError
from edgecompress.export import bundle as bundle_module
from edgecompress.export.bundle import check_output, write_bundle
from edgecompress.formats.codec import dumps, from_jsonable
from edgecompress.formats.manifest import open_bundle, read_manifest, sidecar
from edgecompress.types.bundle import (
    MODEL,
    SCHEMA_VERSION,
    Manifest,
    ModelRecord,
    RuntimeSettings,
    TargetRecord,
    TensorSpec,
    Variant,
)
from edgecompress.types.report import Measurements
from tests.conftest import minilm_recipe

MANIFEST = Manifest(
    tool_version="0",
    name="tiny",
    kind="encoder",
    task="feature-extraction",
    architecture="bert",
    precision="fp32",
    target=TargetRecord(name="t", arch="x86_64", isa=()),
    models={
        MODEL: ModelRecord(
            variants=(
                Variant(
                    backend="onnxruntime-cpu",
                    path="model.onnx",
                    inputs=(TensorSpec(name="x", dtype="int64", shape=("batch", 4)),),
                    outputs=(),
                    runtime=RuntimeSettings(threads=1, graph_optimization="disabled"),
                    providers=("CPUExecutionProvider",),
                ),
            )
        )
    },
)
FILES: dict[str, Path | str | bytes] = {"model.onnx": b"\x08\x0a" * 400, "report.json": "{}\n", "sub/data.bin": b"1234"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_bundle(
        tmp_path / "b",
        manifest_without_files=MANIFEST,
        files=FILES,
        measurements=Measurements(manifest_sha256=""),
        force=False,
    )
    return tmp_path / "b"


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """Change the manifest and its sidecar, as an attacker would."""
    data = json.loads((folder / "manifest.json").read_text()) | changes
    content = dumps(data).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.json.sha256").write_text(sidecar("manifest.json", content))


def test_round_trip(small: Path) -> None:
    manifest, folder = open_bundle(small)
    assert folder == small.resolve()
    assert manifest.files["sub/data.bin"].bytes == 4
    assert replace(manifest, files={}) == MANIFEST
    assert from_jsonable(Manifest, json.loads(dumps(manifest))) == manifest


def test_one_changed_byte_in_any_file_is_refused(small: Path) -> None:
    files = [path for path in sorted(small.rglob("*")) if path.is_file()]
    assert len(files) == len(FILES) + 4
    for path in files:
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(BundleError) as error:
                open_bundle(small)
            assert error.value.exit_code == 7
        path.write_bytes(content)
    open_bundle(small)


def test_truncated_missing_and_unlisted_files_are_refused(small: Path) -> None:
    model = small / "model.onnx"
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    with pytest.raises(BundleError, match="truncated"):
        open_bundle(small)
    model.unlink()
    with pytest.raises(BundleError, match="missing"):
        open_bundle(small)
    model.write_bytes(content)
    (small / "extra.py").write_text("print()")
    with pytest.raises(BundleError, match=r"does not list: extra\.py"):
        open_bundle(small)


def test_a_newer_schema_is_refused_by_name(small: Path) -> None:
    rewrite_manifest(small, schema_version=SCHEMA_VERSION + 1, something_new=True)
    with pytest.raises(BundleError, match="newer edgecompress"):
        open_bundle(small)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "sub/../../outside.bin", "a\\b"])
def test_paths_that_leave_the_bundle_are_refused(small: Path, name: str) -> None:
    (small.parent / "outside.bin").write_bytes(b"1234")
    record = {"sha256": "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4", "bytes": 4}
    files = json.loads((small / "manifest.json").read_text())["files"] | {name: record}
    rewrite_manifest(small, files=files)
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(small)


def test_links_that_leave_the_bundle_are_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"1234")
    (small / "sub" / "data.bin").unlink()
    (small / "sub" / "data.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="link"):
        open_bundle(small)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path)


def test_an_existing_output_needs_force_and_must_be_a_bundle(small: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already exists"):
        check_output(small, force=False)
    write_bundle(small, manifest_without_files=MANIFEST, files={"model.onnx": b"new"}, measurements=None, force=True)
    assert (small / "model.onnx").read_bytes() == b"new"
    assert not (small / "measurements.json").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="is not a bundle"):
        check_output(precious, force=True)


@pytest.mark.parametrize("interruption", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_when_writing_stops(
    small: Path, interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}

    def fail(*_: object) -> None:
        raise interruption

    monkeypatch.setattr(bundle_module, "_sync", fail)
    expected = OutputError if isinstance(interruption, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as error:
        write_bundle(small, manifest_without_files=MANIFEST, files=FILES, measurements=None, force=True)
    if isinstance(error.value, OutputError):
        assert "the disk is full" in error.value.message
    assert [path.name for path in small.parent.iterdir()] == [small.name]
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(
    minilm_dir: Path, minilm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything except the measured times."""
    from edgecompress.export.pipeline import export
    from tests.shared_captures import capture_anew

    capture_anew(monkeypatch)
    again = tmp_path / "again.bundle"
    export(minilm_recipe(minilm_dir), again)
    names = {p.name for p in minilm_bundle.iterdir()}
    assert names == {p.name for p in again.iterdir()}
    times = {"measurements.json", "measurements.json.sha256"}
    assert names > times
    different = [n for n in names - times if (minilm_bundle / n).read_bytes() != (again / n).read_bytes()]
    assert different == []


def test_the_real_bundle_is_small_and_complete(minilm_bundle: Path) -> None:
    manifest, folder = open_bundle(minilm_bundle)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25_000_000
    assert {"model.onnx", "tokenizer.json", "recipe.toml", "report.json", "lineage.json"} <= set(manifest.files)
    assert {"sbom.cdx.json", "build.intoto.json"} <= set(manifest.files)
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["licence"] == {"value": "apache-2.0", "said_by": "read from card", "where": "README.md"}
    assert lineage["base_model"] == {"value": None, "said_by": "nobody", "where": None}
    assert len(lineage["files"]["model.safetensors"]) == 64


def test_a_bundle_can_be_moved(minilm_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm_bundle, tmp_path / "moved")
    open_bundle(tmp_path / "moved")
