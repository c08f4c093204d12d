"""A named hardware target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 1

ACCELERATORS = ("cpu", "cuda")
"""Where a model can compute."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is known of one piece of hardware. Sizes are bytes, rates are per second, each figure has a source."""

    name: str
    title: str
    arch: str  # "x86_64" or "aarch64"
    accelerator: str  # "cpu" or "cuda": where the model computes
    isa: tuple[str, ...]  # CPU features a bundle for this target relies on, e.g. "avx512_vnni"
    backends: tuple[str, ...]  # in order of preference: "onnxruntime", "tensorrt", "tensorrt-rtx"
    computes: tuple[str, ...]  # dtypes it computes in: "float32", "float16", "bfloat16", "float8", "int8", "int4"
    opset: int  # ONNX opset of graphs made for it
    cores: int | None = None
    memory_bytes: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    l2_cache_bytes: int | None = None
    l3_cache_bytes: int | None = None
    peak_ops_per_s: Mapping[str, float] = field(default_factory=dict)  # dense, by dtype
    kernel_isa: str | None = None  # the instruction set whose kernels it takes; None: the best that ``isa`` allows
    compute_capability: tuple[int, int] | None = None
    power_mode: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)  # field name -> where its figure comes from
    notes: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def has_vnni(self) -> bool:
        """True if 8-bit products are summed in 32 bits in one step, so that u8s8 cannot saturate."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.isa))

    @property
    def u8s8_saturates(self) -> bool:
        """True on x86 without VNNI: u8 x s8 pairs are summed in 16 bits there (VPMADDUBSW)."""
        return self.arch == "x86_64" and self.accelerator == "cpu" and not self.has_vnni
