"""Libraries of NVIDIA that are here, or not, and what that is enough for; the libraries are doubles."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from edgecompress.backends import backends
from edgecompress.runtime.accelerators import LIBRARIES, BackendState, find_libraries


class Double:
    """A library whose functions tell one number, through their argument or as their result."""

    def __init__(self, version: int, code: int = 0) -> None:
        def through(place: Any) -> int:
            ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = version
            return code

        self.cuDriverGetVersion = self.cudaRuntimeGetVersion = through
        self.cudnnGetVersion = self.getInferLibVersion = Result(version)


class Result:
    restype: Any = None

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


def loader(here: dict[str, Any]) -> Any:
    def load(name: str) -> Any:
        if name not in here:
            raise OSError(f"{name}: cannot open shared object file")
        return here[name]

    return load


ALL = {
    "libcuda.so.1": Double(13020),
    "libcudart.so.12": Double(12090),
    "libcudnn.so.9": Double(91900),
    "libnvinfer.so.10": Double(101303),
}


def test_versions_are_asked_of_the_libraries() -> None:
    found = find_libraries(loader(ALL), [])
    assert {key: of.version for key, of in found.items()} == {
        **{"driver": "13.2", "cudart": "12.9", "cudnn": "9.19.0", "nvinfer10": "10.13.3", "nvinfer11": ""}
    }
    assert found["nvinfer11"].remark == "no libnvinfer.so.11"


def test_a_library_lies_where_its_package_puts_it(tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").touch()
    found = find_libraries(loader({str(folder / "libcudart.so.13"): Double(13000)}), [str(tmp_path)])
    assert (found["cudart"].version, found["driver"].version) == ("13.0", "")
    assert found["cudart"].remark == ""


@pytest.mark.parametrize("library", [Double(0), Double(13000, code=3), object()], ids=["zero", "fails", "lacks it"])
def test_a_library_that_tells_nothing_has_no_version(library: Any) -> None:
    found = find_libraries(loader({"libcuda.so.1": library}), [])["driver"]
    told = hasattr(library, "cuDriverGetVersion")
    assert (found.version, found.remark) == (("of unknown version", "") if told else ("", "no libcuda.so.1"))


def states(here: dict[str, Any], providers: list[str], *, packages: bool) -> dict[str, BackendState]:
    found = find_libraries(loader(here), [])
    return {name: each.host.state(found, providers, lambda module: packages) for name, each in backends().items()}


def test_a_state_has_the_name_of_its_backend() -> None:
    assert all(name == state.name for name, state in states({}, [], packages=False).items())


def test_what_is_missing_is_named() -> None:
    usable = states({}, ["CPUExecutionProvider"], packages=False)
    assert (usable["onnxruntime-cpu"].builds, usable["onnxruntime-cpu"].runs) == (True, True)
    assert usable["onnxruntime-cuda"].lacks == (
        "libcuda.so.1",
        "libcudart.so.13 or libcudart.so.12",
        "libcudnn.so.9",
        "the package cuda-bindings",
        "onnxruntime-gpu with CUDAExecutionProvider",
    )
    assert usable["tensorrt"].lacks == (
        "libcuda.so.1",
        "libnvinfer.so.10 or libnvinfer.so.11",
        "the package tensorrt",
        "the package cuda-bindings",
    )
    assert usable["tensorrt-rtx"].lacks == ("the package tensorrt-rtx", "the package cuda-bindings", "libcuda.so.1")
    assert {name for name, state in usable.items() if state.builds} == {"onnxruntime-cpu", "onnxruntime-cuda"}
    assert {name for name, state in usable.items() if state.runs} == {"onnxruntime-cpu"}


@pytest.mark.parametrize("version", [10, 11])
def test_either_version_of_tensorrt_is_enough(version: int) -> None:
    here = {name: library for name, library in ALL.items() if "nvinfer" not in name}
    here[f"libnvinfer.so.{version}"] = Double(version * 10000)
    usable = states(here, ["CUDAExecutionProvider", "CPUExecutionProvider"], packages=True)
    assert usable["tensorrt"].lacks == ()
    assert usable["onnxruntime-cuda"].lacks == ()
    assert usable["tensorrt-rtx"].builds
    assert all(state.runs for state in usable.values())


def test_every_library_is_looked_for() -> None:
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        raise OSError

    find_libraries(load, [])
    assert set(asked) == {file for library in LIBRARIES.values() for file in library.files}
