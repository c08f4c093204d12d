"""NVIDIA's libraries on this machine, and which backends they are enough for. Nothing is imported or started for it.

A library is looked for where the loader finds it and where its own package puts it. Versions are asked of the library,
not of a package manager: what is loaded is what counts.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Loader = Callable[[str], Any]
_FOLDERS = ("nvidia/*/lib", "tensorrt_libs", "tensorrt_rtx_libs")  # below site-packages


@dataclass(frozen=True, kw_only=True)
class Library:
    """``files``: of its versions, the latest first; ``asks``: the function that tells its version, and how."""

    title: str
    files: tuple[str, ...]
    asks: str
    read: Callable[[Any], int]
    spell: Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is here of a library: ``version`` is empty where it is not, and ``remark`` says what is missing then."""

    title: str
    version: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """``builds``, ``runs``: whether this version does it and finds here what that takes; ``lacks``: what is missing.

    A GPU itself is not looked for: that the driver has one is seen when a bundle is loaded.
    """

    name: str
    builds: bool
    runs: bool
    lacks: tuple[str, ...] = field(default=())
    remark: str = ""


def _out(function: Any) -> int:
    """What a function writes through its only argument."""
    value = ctypes.c_int()
    return value.value if function(ctypes.byref(value)) == 0 else 0


def _returned(function: Any) -> int:
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
        title="CUDA driver", files=("libcuda.so.1",), asks="cuDriverGetVersion", read=_out, spell=_thousands
    ),
    "cudart": Library(
        title="CUDA runtime",
        files=("libcudart.so.13", "libcudart.so.12"),
        asks="cudaRuntimeGetVersion",
        read=_out,
        spell=_thousands,
    ),
    "cudnn": Library(title="cuDNN", files=("libcudnn.so.9",), asks="cudnnGetVersion", read=_returned, spell=_decimals),
    **{
        f"tensorrt{major}": Library(
            title=f"TensorRT {major}",
            files=(f"libnvinfer.so.{major}",),
            asks="getInferLibVersion",
            read=_returned,
            spell=_decimals,
        )
        for major in (10, 11)
    },
}


def find_libraries(load: Loader = ctypes.CDLL, places: Sequence[str] | None = None) -> dict[str, Found]:
    """Each of LIBRARIES, by its key. ``places``: folders with packages in them; None for Python's own."""
    roots = [Path(place) for place in (sys.path if places is None else places)]
    return {key: _find(library, load, roots) for key, library in LIBRARIES.items()}


def _find(library: Library, load: Loader, roots: Sequence[Path]) -> Found:
    for name in library.files:
        beside = [str(path) for root in roots for folder in _FOLDERS for path in sorted(root.glob(f"{folder}/{name}"))]
        for place in (name, *beside):
            try:
                version = library.read(getattr(load(place), library.asks))
            except (OSError, AttributeError):
                continue
            return Found(title=library.title, version=library.spell(version) if version else "of no known version")
    return Found(title=library.title, version="", remark=f"no {' or '.join(library.files)}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def backends(
    found: Mapping[str, Found],
    providers: Sequence[str],
    has: Callable[[str], bool] = _installed,
) -> list[Backend]:
    """What can be built and run here. ``providers``: of ONNX Runtime; ``has``: whether a package is installed."""

    def missing(*keys: str) -> list[str]:
        return [found[key].remark.removeprefix("no ") for key in keys if not found[key].version]

    def provider(name: str) -> list[str]:
        return [] if name in providers else [f"onnxruntime-gpu with {name}"]

    def package(name: str, module: str) -> list[str]:
        return [] if has(module) else [f"the package {name}"]

    untried = "not yet run on a GPU"
    bindings = package("cuda-bindings", "cuda.bindings")
    cuda = [*missing("driver", "cudart", "cudnn"), *bindings, *provider("CUDAExecutionProvider")]
    rtx = package("tensorrt-rtx", "tensorrt_rtx")
    either = " or ".join(missing("tensorrt10", "tensorrt11"))
    tensorrt = [*missing("driver"), *([either] if " or " in either else []), *package("tensorrt", "tensorrt")]
    return [
        Backend(name="onnxruntime, CPU", builds=True, runs="CPUExecutionProvider" in providers),
        Backend(name="onnxruntime, CUDA", builds=True, runs=not cuda, lacks=tuple(cuda), remark=untried),
        Backend(
            name="onnxruntime, TensorRT",
            builds=False,
            runs=False,
            lacks=tuple([*missing("driver", "tensorrt10"), *provider("TensorrtExecutionProvider")]),  # not with 11
            remark="this version does not use it",
        ),
        Backend(
            name="tensorrt",
            builds=not tensorrt,
            runs=not tensorrt and not bindings,
            lacks=tuple([*tensorrt, *bindings]),
            remark=f"engines are built on the device; {untried}",
        ),
        Backend(
            name="tensorrt-rtx",
            builds=not rtx,
            runs=not rtx and not bindings and not missing("driver"),
            lacks=tuple([*rtx, *bindings, *missing("driver")]),
            remark=f"engines are built without a GPU; {untried}",
        ),
    ]
