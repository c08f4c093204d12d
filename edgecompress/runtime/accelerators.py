"""NVIDIA's libraries on this machine, and which of them a backend lacks. Nothing is imported or started.

A library is looked up by the dynamic loader and in its own package's folder. Its version comes from the library itself,
not from a package manager, because the loaded file is what counts.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Loader = Callable[[str], Any]
_FOLDERS = ("nvidia/*/lib", "tensorrt_libs", "tensorrt_rtx_libs")  # below site-packages


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library and the names of its files."""

    title: str
    files: tuple[str, ...]  # one per version, the latest first
    version_function: str
    read: Callable[[Any], int]  # calls that function
    spell: Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class LibraryState:
    """A library on this machine. If it is missing, ``version`` is empty and ``remark`` names the missing files."""

    title: str
    version: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class BackendState:
    """Whether a backend builds and runs on this machine, and what it lacks.

    The GPU itself is not checked: whether the driver has one shows when a bundle is loaded.
    """

    name: str
    builds: bool
    runs: bool
    lacks: tuple[str, ...] = ()
    remark: str = ""


def _by_pointer(function: Any) -> int:
    """The value that a function writes through its only argument."""
    value = ctypes.c_int()
    return value.value if function(ctypes.byref(value)) == 0 else 0


def _by_return(function: Any) -> int:
    function.restype = ctypes.c_size_t
    return int(function())


def _thousands(version: int) -> str:
    """CUDA's 13020 is 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _decimals(version: int) -> str:
    """cuDNN's 91900 is 9.19.0, and TensorRT's 101300 is 10.13.0."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


LIBRARIES = {
    "driver": Library(
        title="CUDA driver",
        files=("libcuda.so.1",),
        version_function="cuDriverGetVersion",
        read=_by_pointer,
        spell=_thousands,
    ),
    "cudart": Library(
        title="CUDA runtime",
        files=("libcudart.so.13", "libcudart.so.12"),
        version_function="cudaRuntimeGetVersion",
        read=_by_pointer,
        spell=_thousands,
    ),
    "cudnn": Library(
        title="cuDNN", files=("libcudnn.so.9",), version_function="cudnnGetVersion", read=_by_return, spell=_decimals
    ),
    **{
        f"nvinfer{major}": Library(
            title=f"TensorRT {major}",
            files=(f"libnvinfer.so.{major}",),
            version_function="getInferLibVersion",
            read=_by_return,
            spell=_decimals,
        )
        for major in (10, 11)
    },
}


def find_libraries(load: Loader = ctypes.CDLL, places: Sequence[str] | None = None) -> dict[str, LibraryState]:
    """Each of LIBRARIES, by its key. ``places``: folders with packages in them; None for Python's own."""
    roots = [Path(place) for place in (sys.path if places is None else places)]
    return {key: _find(library, load, roots) for key, library in LIBRARIES.items()}


def _find(library: Library, load: Loader, roots: Sequence[Path]) -> LibraryState:
    for name in library.files:
        beside = [str(path) for root in roots for folder in _FOLDERS for path in sorted(root.glob(f"{folder}/{name}"))]
        for place in (name, *beside):
            try:
                version = library.read(getattr(load(place), library.version_function))
            except (OSError, AttributeError):
                continue
            return LibraryState(
                title=library.title, version=library.spell(version) if version else "of unknown version"
            )
    return LibraryState(title=library.title, version="", remark=f"no {' or '.join(library.files)}")


def missing_libraries(found: Mapping[str, LibraryState], *keys: str) -> list[str]:
    """The files of each library of ``keys`` that is not on this machine."""
    return [found[key].remark.removeprefix("no ") for key in keys if not found[key].version]


def missing_package(package: str, module: str, has: Callable[[str], bool]) -> list[str]:
    """``has``: whether a module is installed."""
    return [] if has(module) else [f"the package {package}"]


def has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False
