"""The target, package versions and host that a manifest and its measurements record."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

from edgecompress.formats.cpu import host_cpu_name
from edgecompress.types.bundle import TargetRecord
from edgecompress.types.packages import EXPORT, ONNXRUNTIME
from edgecompress.types.target import Target

_ISA_REASON = {
    True: "its int8 products rely on VNNI's 32-bit sums; without VNNI, u8 x s8 pairs saturate and results are wrong",
    False: "it was compiled for these CPU features",
}


def target_record(target: Target, precision: str) -> TargetRecord:
    """The part of the target that ``load`` checks before it runs the model."""
    return TargetRecord(
        name=target.name,
        arch=target.arch,
        isa=target.isa,
        isa_reason=_ISA_REASON[target.has_vnni and precision.startswith("int8")],
    )


def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that make a bundle."""
    return {"python": platform.python_version()} | {p: version_of(p) for p in EXPORT}


def host_facts(threads: int) -> Mapping[str, str]:
    """The host that measured the latencies."""
    return {
        "cpu": host_cpu_name(),
        "threads": str(threads),
        ONNXRUNTIME: version_of(ONNXRUNTIME),
        "python": platform.python_version(),
    }


def version_of(package: str) -> str:
    return importlib.metadata.version(package)
