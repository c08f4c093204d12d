"""Files on a device, each known by its sha256: what is there whole is not sent again, and a part is continued.

Standard library only: over SSH this module is sent as text and run by the Python that is there. A part that came
through is hashed as it lies on the disk before it is put in its place, so nothing is trusted for having been there.
Two that send the same file write the same bytes to the same places, so they do not harm each other.
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
    offset: int  # from which byte on it is missing


def root() -> Path:
    """Where all of this lies on a device."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "edgecompress" / "device"


def place(path: str) -> Path:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"a path outside the device's folder: {path!r}")
    return root() / pure


def missing(files: list[File]) -> list[MissingPart]:
    """What is not here with the right sha256, and how much of each is here as a part."""
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
    """Put a part that is whole in its place. False: its sha256 is another, and it was thrown away."""
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
    except FileNotFoundError:  # another that sent the same was first
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
