"""The instruction sets that kernels are compiled for, and what each makes of the dot product of bytes."""

from __future__ import annotations

from dataclasses import dataclass

_DOT_HEAD = """
define <16 x i32> @edgecompress_dot(<16 x i32> %sums, <64 x i8> %u, <64 x i8> %s) alwaysinline nounwind {
"""
_VNNI = (
    "declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)\n"
    + _DOT_HEAD
    + "  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %sums, <64 x i8> %u, <64 x i8> %s)\n"
    + "  ret <16 x i32> %r\n}\n"
)


@dataclass(frozen=True, kw_only=True)
class Isa:
    """One instruction set: how LLVM names it, and the dot product in its own words."""

    name: str
    arch: str
    triple: str
    cpu: str
    features: str
    needs: tuple[str, ...]  # CPU features, in the words of a target's file
    zig: str
    own: str  # LLVM IR of what vector.py leaves to the instruction set
    most_rows: int  # of activations in registers at once
    verified_on: tuple[str, ...]  # CPUs that ran the tests


X86_64_V4_VNNI = Isa(
    name="x86-64-v4-vnni",
    arch="x86_64",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v4",
    features="+avx512vnni",
    needs=("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
    zig="x86_64-linux-gnu.2.17",
    own=_VNNI,
    most_rows=8,
    verified_on=("AMD Zen 4",),
)
ISAS = {isa.name: isa for isa in (X86_64_V4_VNNI,)}
