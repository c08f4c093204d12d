"""Files on a device, identified by their sha256: complete files are not sent again, and partial ones are continued.

Standard library only: over SSH this module is sent as text and runs in the device's own Python. A file that arrived is
hashed on disk before it is moved to its place. Two senders of the same file write the same bytes to the same places,
so they do no harm to each other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import TypedDict


class File(TypedDict):
    path: str  # below root(), as POSIX writes it
    sha256: str
    bytes: int


class MissingPart(TypedDict):
    index: int  # of the file
    offset: int  # the first missing byte


def root() -> Path:
    """The folder of edgecompress on a device."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "edgecompress" / "device"


def place(path: str) -> Path:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"a path outside the device's folder: {path!r}")
    return root() / pure


def missing(files: list[File]) -> list[MissingPart]:
    """Files that are not here with the right sha256, and the length of the part of each that is."""
    return [
        MissingPart(index=i, offset=_part_bytes(file))
        for i, file in enumerate(files)
        if not _is(place(file["path"]), file)
    ]


def needed_bytes(files: list[File], need: list[MissingPart]) -> int:
    return sum(files[each["index"]]["bytes"] - each["offset"] for each in need)


def free_bytes() -> int:
    root().mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(root()).free


def write(file: File, offset: int, data: bytes) -> None:
    part = _part(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        view, at = memoryview(data), offset
        while view:
            done = os.pwrite(descriptor, view, at)
            view, at = view[done:], at + done
    finally:
        os.close(descriptor)


def settle(file: File) -> bool:
    """Move a complete part to its place. False: its sha256 differs, and it was deleted."""
    part, there = _part(file), place(file["path"])
    there.parent.mkdir(parents=True, exist_ok=True)
    if file["bytes"] == 0:
        write(file, 0, b"")
    try:
        if _is(part, file):
            _sync(part)
            os.replace(part, there)
            return True
        part.unlink(missing_ok=True)
    except FileNotFoundError:  # another sender of the same file was first
        pass
    return _is(there, file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part(file: File) -> Path:
    return root() / "incoming" / f"{file['sha256']}.part"


def _part_bytes(file: File) -> int:
    part = _part(file)
    size = part.stat().st_size if part.is_file() else 0
    if size > file["bytes"]:
        part.unlink()
        return 0
    return size


def _is(path: Path, file: File) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file["bytes"]:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == file["sha256"]
