"""Chooses the GPU that a bundle runs on."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.errors import HostError
from edgecompress.runtime.cuda.device import Device
from edgecompress.runtime.cuda.driver import CudaDevice, list_gpus, open_driver
from edgecompress.types.bundle import BuildPlan, Manifest, Variant
from edgecompress.types.gpu import Gpu, describe_gpus

_AMPERE = (8, 0)


def open_device(manifest: Manifest, variant: Variant, wanted: int | None) -> Device:
    """Open the GPU that the bundle is for. ``wanted`` is its index, needed where several match.

    Raises HostError if the driver, the bindings or the GPU are missing, if no GPU matches, or if several match and
    ``wanted`` is None.
    """
    try:
        cuda = open_driver()
    except HostError as error:
        raise HostError(f"{manifest.name} is for {manifest.target.name}: {error.message}", hint=error.hint) from None
    return CudaDevice(cuda, choose(manifest, variant, list_gpus(cuda), wanted))


def choose(manifest: Manifest, variant: Variant, gpus: Sequence[Gpu], wanted: int | None) -> int:
    """Return the index of the GPU that the bundle runs on. Raises HostError."""
    if not gpus:
        raise HostError(
            f"{manifest.name} needs an NVIDIA GPU, but the driver finds none",
            hint="Run `nvidia-smi` to list GPUs, and check that CUDA_VISIBLE_DEVICES does not hide one.",
        )
    listed = describe_gpus(gpus)
    if wanted is not None and not 0 <= wanted < len(gpus):
        raise HostError(f"there is no GPU {wanted}; this machine has {listed}", hint="Choose another with --device N.")
    fitting = [i for i, gpu in enumerate(gpus) if _fits(variant, gpu)]
    if wanted is not None and wanted in fitting:
        return wanted
    if wanted is None and len(fitting) == 1:
        return fitting[0]
    if wanted is None and fitting:
        raise HostError(f"several GPUs match: {listed}", hint="Choose one with device=N (--device N).")
    if wanted is not None:
        listed = f"GPU {wanted}, {gpus[wanted].name}, {gpus[wanted].capability}"
    raise HostError(
        f"{manifest.name} is for {_for(variant)}, but this machine has {listed}",
        hint=_rebuild(variant),
    )


def _fits(variant: Variant, gpu: Gpu) -> bool:
    engine = variant.engine
    if engine is None:
        return True  # an ONNX Runtime graph: the provider has kernels for every compute capability that it supports
    if _compatibility(variant.build) == "ampere-plus":
        return gpu.compute_capability >= _AMPERE
    return gpu.compute_capability == engine.compute_capability and engine.gpu in ("", gpu.name)


def _for(variant: Variant) -> str:
    assert variant.engine is not None
    if _compatibility(variant.build) == "ampere-plus":
        return "GPUs of compute capability 8.0 and above"
    capability = f"compute capability {'.'.join(map(str, variant.engine.compute_capability))}"
    return f"{variant.engine.gpu} ({capability})" if variant.engine.gpu else capability


def _rebuild(variant: Variant) -> str:
    if variant.build is not None:
        return "If the compute capability matches, run on that machine: edgecompress build BUNDLE --force"
    return "Export the student for this GPU; `edgecompress targets` lists the target names."


def _compatibility(plan: BuildPlan | None) -> str:
    return "none" if plan is None else plan.hardware_compatibility
