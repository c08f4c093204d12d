"""Which GPU a bundle runs on: the one that is meant, or none."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.errors import HostError
from edgecompress.runtime.cuda.device import Device
from edgecompress.runtime.cuda.driver import CudaDevice, list_gpus, open_driver
from edgecompress.types.bundle import BuildPlan, Manifest
from edgecompress.types.gpu import Gpu, describe_gpus

_AMPERE = (8, 0)


def open_device(manifest: Manifest, wanted: int | None) -> Device:
    """The GPU that the bundle is for; ``wanted``: its number where there are several.

    Raises HostError if driver, bindings or GPU are missing, if none fits, or if several do and none is named.
    """
    try:
        cuda = open_driver()
    except HostError as error:
        raise HostError(f"{manifest.name} is for {manifest.target.name}: {error.message}", hint=error.hint) from None
    return CudaDevice(cuda, choose(manifest, list_gpus(cuda), wanted))


def choose(manifest: Manifest, gpus: Sequence[Gpu], wanted: int | None) -> int:
    """The place of the GPU that the bundle runs on. Raises HostError."""
    if not gpus:
        raise HostError(
            f"{manifest.name} needs an NVIDIA GPU, and the driver finds none",
            hint="`nvidia-smi` shows what the driver sees; CUDA_VISIBLE_DEVICES can hide a GPU.",
        )
    listed = describe_gpus(gpus)
    if wanted is not None and not 0 <= wanted < len(gpus):
        raise HostError(f"there is no GPU {wanted}; here is {listed}", hint="Give another device (--device).")
    fitting = [i for i, gpu in enumerate(gpus) if _fits(manifest, gpu)]
    if wanted is not None and wanted in fitting:
        return wanted
    if wanted is None and len(fitting) == 1:
        return fitting[0]
    if wanted is None and fitting:
        raise HostError(f"several GPUs could be meant: {listed}", hint="Say which: device=N (--device N).")
    if wanted is not None:
        listed = f"GPU {wanted}, {gpus[wanted].name}, {gpus[wanted].capability}"
    raise HostError(
        f"{manifest.name} is for {_for(manifest)}, and here is {listed}",
        hint=_rebuild(manifest),
    )


def _fits(manifest: Manifest, gpu: Gpu) -> bool:
    engine = manifest.engine
    if engine is None:
        return True  # a graph for ONNX Runtime: its provider has kernels for every capability that it supports
    if _compatibility(manifest.build) == "ampere-plus":
        return gpu.compute_capability >= _AMPERE
    return gpu.compute_capability == engine.compute_capability and engine.gpu in ("", gpu.name)


def _for(manifest: Manifest) -> str:
    assert manifest.engine is not None
    if _compatibility(manifest.build) == "ampere-plus":
        return "GPUs of compute capability 8.0 and above"
    capability = f"compute capability {'.'.join(map(str, manifest.engine.compute_capability))}"
    return f"{manifest.engine.gpu} ({capability})" if manifest.engine.gpu else capability


def _rebuild(manifest: Manifest) -> str:
    if manifest.build is not None:
        return "On the GPU that it is to run on: edgecompress build BUNDLE --force, if it has that compute capability."
    return "Export the student for this GPU; a target's name is in `edgecompress targets`."


def _compatibility(plan: BuildPlan | None) -> str:
    return "none" if plan is None else plan.hardware_compatibility
