"""Describes the host of a measurement: a number without its host means nothing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TELLING_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = (
    "edgecompress",
    "numpy",
    "onnxruntime",
    "onnx",
    "tokenizers",
    "torch",
    "transformers",
    "sentence-transformers",
    "openvino",
    "nncf",
)


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def describe_host() -> dict[str, object]:
    """CPU model, the features that decide which int8 and bf16 kernels run, cores, load and versions."""
    flags = set(_cpu_info("flags").split())
    return {
        "cpu": _cpu_info("model name") or platform.processor(),
        "cpu_family_model": f"{_cpu_info('cpu family')}/{_cpu_info('model')}",
        "features": [name for name in TELLING_FEATURES if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "virtual_machine": "hypervisor" in flags,
        "system": platform.system(),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
    }
