"""What a bundle was made for, with and on, as a manifest and its measurements tell it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

from edgecompress.formats.cpu import host_cpu_name
from edgecompress.types.bundle import TargetRecord
from edgecompress.types.packages import EXPORT, ONNXRUNTIME
from edgecompress.types.target import Target

_ISA_REASON = {
    True: "its int8 products are summed in 32 bits by VNNI; without it u8 x s8 pairs saturate and answers are wrong",
    False: "it was compiled for these CPU features",
}


def target_record(target: Target, precision: str) -> TargetRecord:
    """What a load must check before it runs the model."""
    return TargetRecord(
        name=target.name,
        arch=target.arch,
        isa=target.isa,
        isa_reason=_ISA_REASON[target.has_vnni and precision.startswith("int8")],
    )


def versions() -> Mapping[str, str]:
    """Python and the packages that make a bundle."""
    return {"python": platform.python_version()} | {p: version_of(p) for p in EXPORT}


def host_facts(threads: int) -> Mapping[str, str]:
    """What a latency was measured on."""
    return {
        "cpu": host_cpu_name(),
        "threads": str(threads),
        ONNXRUNTIME: version_of(ONNXRUNTIME),
        "python": platform.python_version(),
    }


def version_of(package: str) -> str:
    return importlib.metadata.version(package)
