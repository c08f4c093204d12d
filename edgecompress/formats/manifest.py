"""Reads bundles without trusting them: every byte is checked against the manifest before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgecompress.errors import BundleError
from edgecompress.formats.codec import dumps, from_jsonable
from edgecompress.formats.manifest_1 import upgrade
from edgecompress.formats.older import measurements_now, report_now
from edgecompress.types.bundle import SCHEMA_VERSION, FileRecord, Manifest, Variant
from edgecompress.types.provenance import LINEAGE_VERSION, Lineage
from edgecompress.types.report import Measurements, Report

T = TypeVar("T")

MANIFEST = "manifest.json"
MEASUREMENTS = "measurements.json"
SIGNATURE = "model.sig"
REFERENCE = "reference.npz"
"""The reference model's outputs for a few held-out samples, for `edgecompress verify`."""
_SIDECAR = ".sha256"
_OUTSIDE_MANIFEST = {MANIFEST, MANIFEST + _SIDECAR, MEASUREMENTS, MEASUREMENTS + _SIDECAR, SIGNATURE}
UNSIGNED = (SIGNATURE, MEASUREMENTS, MEASUREMENTS + _SIDECAR, ".gitattributes", ".cache")
"""Files that a signature does not cover: itself, measured times, and files that the hub adds to a download."""
_HUB_FILES = (".gitattributes", ".cache/huggingface/")
_CHUNK_BYTES = 1 << 20
_RECOPY = "Copy the bundle again from its source, or export it again."


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sidecar(name: str, content: bytes) -> str:
    """The text of ``<name>.sha256``, as sha256sum writes it."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def write_manifest(manifest: Manifest, folder: Path) -> None:
    content = dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / (MANIFEST + _SIDECAR)).write_text(sidecar(MANIFEST, content), encoding="utf-8")


def write_measurements(measurements: Measurements, folder: Path) -> None:
    content = dumps(measurements).encode()
    (folder / MEASUREMENTS).write_bytes(content)
    (folder / (MEASUREMENTS + _SIDECAR)).write_text(sidecar(MEASUREMENTS, content), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone. Raises BundleError."""
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}", hint="Give the folder that `edgecompress export` wrote.")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}",
            hint="Give the folder that `edgecompress export` wrote.",
        )
    data = _checked_json(folder, MANIFEST)
    _require_known(folder, data, SCHEMA_VERSION)
    return _parse(Manifest, _newest(folder, data), folder / MANIFEST)


def _newest(folder: Path, data: Any) -> Any:
    """The manifest's data in the current schema."""
    if not isinstance(data, dict) or data.get("schema_version") != 1:
        return data
    try:
        return upgrade(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"'{MANIFEST}' of {folder.name} is not valid: {error}", hint=_RECOPY) from error


def open_bundle(folder: Path) -> tuple[Manifest, Path]:
    """Check every file of the bundle; return the manifest and the folder, resolved.

    Raises BundleError if a file is missing, truncated, altered, not listed, or lies outside the folder.
    """
    manifest = read_manifest(folder)
    root = folder.resolve()
    for name, record in manifest.files.items():
        _check_file(root, name, record)
    require_listed(
        manifest, [path for record in manifest.models.values() for v in record.variants for path in _paths(v)]
    )
    present = {str(PurePosixPath(p.relative_to(root))) for p in root.rglob("*") if not p.is_dir() or p.is_symlink()}
    unlisted = sorted(
        name for name in present - set(manifest.files) - _OUTSIDE_MANIFEST if not name.startswith(_HUB_FILES)
    )
    if unlisted:
        raise BundleError(
            f"{folder.name} holds a file that its manifest does not list: {unlisted[0]}",
            hint="Remove it, or keep it outside the bundle.",
        )
    if (root / MEASUREMENTS).exists():
        _checked_json(root, MEASUREMENTS)
    return manifest, root


def require_listed(manifest: Manifest, paths: Iterable[str]) -> None:
    """Raises BundleError if one of ``paths`` is not among the manifest's files."""
    for path in paths:
        if path not in manifest.files:
            raise BundleError(f"the manifest of {manifest.name} does not list '{path}', which it needs", hint=_RECOPY)


def _paths(variant: Variant) -> Iterator[str]:
    yield variant.path
    if variant.data is not None:
        yield variant.data
    if variant.engine is not None:
        yield from (variant.engine.path, variant.engine.layers)


def read_report(folder: Path) -> Report:
    return _parse(Report, report_now(_json(folder / "report.json")), folder / "report.json")


def read_lineage(folder: Path) -> Lineage:
    data = _json(folder / "lineage.json")
    _require_known(folder, data, LINEAGE_VERSION)
    return _parse(Lineage, data, folder / "lineage.json")


def read_measurements(folder: Path) -> Measurements | None:
    if not (folder / MEASUREMENTS).exists():
        return None
    return _parse(Measurements, measurements_now(_checked_json(folder, MEASUREMENTS)), folder / MEASUREMENTS)


def _check_file(root: Path, name: str, record: FileRecord) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise BundleError(
            f"the manifest names a path outside the bundle: '{name}'",
            hint="Do not use this bundle; get it again from a source that you trust.",
        )
    path = root / name
    if path.is_symlink() or not path.resolve().is_relative_to(root):
        raise BundleError(
            f"'{name}' is a link that leaves the bundle",
            hint="Do not use this bundle; get it again from a source that you trust.",
        )
    if not path.is_file():
        raise BundleError(f"'{name}' is missing from the bundle {root.name}", hint=_RECOPY)
    size = path.stat().st_size
    if size != record.bytes:
        kind = "truncated" if size < record.bytes else "longer than recorded"
        raise BundleError(f"'{name}' is {kind}: {size} bytes, {record.bytes} expected", hint=_RECOPY)
    if file_sha256(path) != record.sha256:
        raise BundleError(f"'{name}' was altered: its sha256 does not match the manifest", hint=_RECOPY)


def _checked_json(folder: Path, name: str) -> Any:
    """Read ``name`` and check it against its sha256 sidecar."""
    path, side = folder / name, folder / (name + _SIDECAR)
    if path.is_symlink() or not side.is_file():
        raise BundleError(f"'{name}{_SIDECAR}' is missing from the bundle {folder.name}", hint=_RECOPY)
    content = path.read_bytes()
    if side.read_bytes() != sidecar(name, content).encode():
        raise BundleError(f"'{name}' was altered: its sha256 does not match {name}{_SIDECAR}", hint=_RECOPY)
    return _json(path)


def _require_known(folder: Path, data: Any, newest: int) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > newest:
        raise BundleError(
            f"{folder.name} was written by a newer edgecompress (schema {version}; this one reads {newest})",
            hint="Upgrade edgecompress, or export the bundle again with this version.",
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"'{path.name}' cannot be read: {error}", hint=_RECOPY) from error


def _parse(cls: type[T], data: Any, path: Path) -> T:
    try:
        return from_jsonable(cls, data)
    except ValueError as error:
        raise BundleError(f"'{path.name}' is not valid: {error}", hint=_RECOPY) from error
