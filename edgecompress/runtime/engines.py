"""What a machine lacks to run a bundle's engine. An engine is never replaced by something that runs on the CPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import NoReturn

from edgecompress.errors import HostError
from edgecompress.types.bundle import EngineRecord, Manifest

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_LIBRARIES = {"tensorrt-rtx": "libtensorrt_rtx.so.1", "tensorrt": "libnvinfer.so"}


def refuse_engine(manifest: Manifest, engine: EngineRecord) -> NoReturn:
    """Raises HostError, always: it names what is missing here, or says that this version runs no engines."""
    wanted = ".".join(map(str, engine.compute_capability))
    elsewhere = f"Use it on a GPU of compute capability {wanted}, or export the student for this machine."
    found = [".".join(map(str, capability)) for capability in _gpus(manifest, elsewhere)]
    if wanted not in found:
        raise HostError(
            f"the engine of {manifest.name} is for compute capability {wanted}, and here is {', '.join(found)}",
            way_out=f"{elsewhere} A target's name is in `edgecompress targets`.",
        )
    library = _LIBRARIES[engine.builder]
    try:
        version = importlib.metadata.version(engine.builder)
    except importlib.metadata.PackageNotFoundError:
        raise HostError(
            f"the engine of {manifest.name} needs {library}, which is not installed",
            way_out=f"pip install {engine.builder}=={engine.version}",
        ) from None
    if version != engine.version:
        raise HostError(
            f"the engine of {manifest.name} was built by {engine.builder} {engine.version} and {version} is installed",
            way_out=f"pip install {engine.builder}=={engine.version}, or build it again: edgecompress build … --force",
        )
    raise HostError(
        "this version of edgecompress builds engines and does not run them yet",
        way_out=f"{library} runs '{engine.path}' directly; its inputs and shapes are in manifest.json.",
    )


def _gpus(manifest: Manifest, elsewhere: str) -> list[tuple[int, int]]:
    """Compute capability of each GPU. Raises HostError if there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise HostError(
            f"the engine of {manifest.name} needs an NVIDIA GPU, and its driver's {DRIVER} is not on this machine",
            way_out=elsewhere,
        ) from None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise HostError(
            f"the engine of {manifest.name} needs an NVIDIA GPU, and {DRIVER} finds none", way_out=elsewhere
        )
    return [(_attribute(driver, _MAJOR, index), _attribute(driver, _MINOR, index)) for index in range(count.value)]


def _attribute(driver: ctypes.CDLL, attribute: int, index: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
