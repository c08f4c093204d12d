"""A named hardware target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 1

ACCELERATORS = ("cpu", "cuda")
"""Where a model can run."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The properties of one piece of hardware. Sizes are in bytes, rates per second; each figure has a source."""

    name: str
    title: str
    arch: str  # "x86_64" or "aarch64"
    accelerator: str  # "cpu" or "cuda": where the model runs
    isa: tuple[str, ...]  # CPU features that a bundle for this target needs, e.g. "avx512_vnni"
    backends: tuple[str, ...]  # in order of preference: "onnxruntime", "tensorrt", "tensorrt-rtx"
    computes: tuple[str, ...]  # dtypes it computes in: "float32", "float16", "bfloat16", "float8", "int8", "int4"
    opset: int  # ONNX opset of graphs made for it
    cores: int | None = None
    memory_bytes: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    l2_cache_bytes: int | None = None
    l3_cache_bytes: int | None = None
    peak_ops_per_s: Mapping[str, float] = field(default_factory=dict)  # dense, by dtype
    kernel_isa: str | None = None  # instruction set of its kernels; None: the best that ``isa`` allows
    compute_capability: tuple[int, int] | None = None
    power_mode: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)  # field name -> URL or description of the source
    notes: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def has_vnni(self) -> bool:
        """True if the CPU sums 8-bit products directly in 32 bits, so that u8 x s8 products cannot saturate."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.isa))

    @property
    def u8s8_saturates(self) -> bool:
        """True on x86 without VNNI: u8 x s8 pairs are summed in 16 bits there (VPMADDUBSW)."""
        return self.arch == "x86_64" and self.accelerator == "cpu" and not self.has_vnni
