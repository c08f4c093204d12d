"""Writes a bundle to a temporary folder and renames it, so that the output is complete or absent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgecompress.errors import OutputError
from edgecompress.formats.manifest import MANIFEST, file_sha256, read_measurements, write_manifest, write_measurements
from edgecompress.lineage.documents import engine_documents
from edgecompress.types.bundle import FileRecord, Manifest
from edgecompress.types.report import Measurements

MakeDocuments = Callable[[Mapping[str, FileRecord]], Mapping[str, str]]
"""Records of a bundle's files -> the documents that list them (SBOM, attestation): name -> content."""


def check_output(path: Path, force: bool) -> None:
    """Check, before any work, that the output is free and writable. Raises OutputError."""
    if path.exists() or path.is_symlink():
        if not force:
            raise OutputError(f"{path} already exists", hint="Give another --output, or --force to replace it.")
        if path.is_symlink() or not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).exists()):
            raise OutputError(f"{path} is not a bundle, so --force does not replace it", hint="Give another --output.")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raises OutputError if ``path`` cannot be created."""
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write in {parent}", hint="Give an --output in a writable folder.")


def write_bundle(
    folder: Path,
    *,
    manifest_without_files: Manifest,
    files: Mapping[str, Path | str | bytes],
    measurements: Measurements | None,
    force: bool,
    closing: MakeDocuments | None = None,
) -> Manifest:
    """Write a bundle of ``files`` (name -> a path to copy, or its content) and return its manifest.

    ``closing`` builds the documents that list the other files' hashes.

    Raises OutputError if the output exists (without ``force``), cannot be written, or the disk is full. Nothing is left
    behind then.
    """
    check_output(folder, force)
    target = folder.absolute()
    staging = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, content in sorted(files.items()):
            _write(staging / name, content)
        records = {name: _record(staging / name) for name in sorted(files)}
        for name, content in closing(records).items() if closing is not None else ():
            _write(staging / name, content)
            records[name] = _record(staging / name)
        manifest = replace(manifest_without_files, files=dict(sorted(records.items())))
        write_manifest(manifest, staging)
        if measurements is not None:
            write_measurements(replace(measurements, manifest_sha256=file_sha256(staging / MANIFEST)), staging)
        for path in staging.rglob("*"):
            if path.is_file():
                _sync(path)
        _put_in_place(staging, target)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise OutputError(
            f"cannot write {folder}: {reason}",
            hint="Free disk space or give another --output; nothing was left behind.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def add_engine(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Manifest:
    """Add an engine's files to an existing bundle, with the ``manifest`` that names them; return the written manifest.

    Other files keep their bytes, except the documents that list files. A signature is dropped, because the bundle has
    changed. Raises OutputError; the old bundle stays until the new one is complete.
    """
    kept = {name: folder / name for name in manifest.files if name not in files}
    return write_bundle(
        folder,
        manifest_without_files=manifest,
        files={**kept, **files},
        measurements=read_measurements(folder),
        force=True,
        closing=engine_documents(folder, manifest, files),
    )


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256=file_sha256(path), bytes=path.stat().st_size)


def _write(path: Path, content: Path | str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(staging: Path, target: Path) -> None:
    """Rename into place; an old bundle is moved aside first and removed only after the rename."""
    aside = target.parent / f".{target.name}.{os.getpid()}.old"
    old = target.exists()
    if old:
        os.rename(target, aside)
    try:
        os.rename(staging, target)
    except OSError:
        if old:
            os.rename(aside, target)
        raise
    if old:
        shutil.rmtree(aside, ignore_errors=True)
