"""The instruction sets that kernels are compiled for, with their dot products of bytes."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress_kernels.cpu import dots, matrices

HERE, QEMU = "natively", "under qemu-user"


@dataclass(frozen=True, kw_only=True)
class Isa:
    """One instruction set: its LLVM name, and its dot products."""

    name: str
    arch: str
    triple: str
    cpu: str
    features: str
    needs: tuple[str, ...]  # CPU features, named as in a target's file
    zig: str
    assembler: str = ""  # assembler directives; the shim itself is for any CPU of the architecture
    own: str  # LLVM IR of the functions that vector.py leaves to the instruction set
    signed: bool  # its dot product is signed: 128 is subtracted from 8-bit weights
    vectors: int  # sixteen-lane vectors that its registers hold
    most_rows: int  # rows of activations in registers
    matrices: bool  # AMX tile registers
    verified_on: tuple[str, ...]  # CPUs that ran the tests


_X86 = {"arch": "x86_64", "triple": "x86_64-unknown-linux-gnu", "zig": "x86_64-linux-gnu.2.17"}
_ARM = {"arch": "aarch64", "triple": "aarch64-unknown-linux-gnu", "zig": "aarch64-linux-gnu.2.17"}

X86_64_V4_VNNI = Isa(
    **_X86,
    name="x86-64-v4-vnni",
    cpu="x86-64-v4",
    features="+avx512vnni",
    needs=("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
    own=dots.VNNI,
    signed=False,
    vectors=32,
    most_rows=8,
    matrices=False,
    verified_on=(f"AMD Zen 4, {HERE}",),
)
X86_64_V4_AMX = Isa(
    **_X86,
    name="x86-64-v4-amx",
    cpu="x86-64-v4",
    features="+avx512vnni,+amx-tile,+amx-int8",
    needs=(*X86_64_V4_VNNI.needs, "amx_tile", "amx_int8"),
    own=dots.VNNI + matrices.AMX,
    signed=False,
    vectors=32,
    most_rows=8,
    matrices=True,
    verified_on=(f"an Intel Xeon with AMX, {HERE}",),
)
X86_64_V3 = Isa(
    **_X86,
    name="x86-64-v3",
    cpu="x86-64-v3",
    features="",
    needs=("avx2", "fma", "f16c"),
    own=dots.AVX2,
    signed=False,
    vectors=8,
    most_rows=4,
    matrices=False,
    verified_on=(f"AMD Zen 3 and Zen 4, {HERE}",),
)
CORTEX_A72 = Isa(
    **_ARM,
    name="cortex-a72",
    cpu="cortex-a72",
    features="",
    needs=("asimd",),
    own=dots.NEON,
    signed=True,
    vectors=8,
    most_rows=4,
    matrices=False,
    verified_on=(f"Cortex-A72, {QEMU}",),
)
CORTEX_A76 = Isa(
    **_ARM,
    name="cortex-a76",
    cpu="cortex-a76",
    features="",
    needs=("asimd", "asimddp", "asimdhp"),
    assembler=".arch_extension dotprod\n",
    own=dots.NEON_DOT,
    signed=True,
    vectors=8,
    most_rows=4,
    matrices=False,
    verified_on=(f"Cortex-A76, {QEMU}",),
)
CORTEX_A78 = Isa(
    **_ARM,
    name="cortex-a78",  # no i8mm: the same instructions as cortex-a76, scheduled differently
    cpu="cortex-a78",
    features="",
    needs=("asimd", "asimddp", "asimdhp"),
    assembler=".arch_extension dotprod\n",
    own=dots.NEON_DOT,
    signed=True,
    vectors=8,
    most_rows=4,
    matrices=False,
    verified_on=(f"Neoverse-N1, {QEMU}",),
)
ISAS = {isa.name: isa for isa in (X86_64_V4_AMX, X86_64_V4_VNNI, X86_64_V3, CORTEX_A76, CORTEX_A78, CORTEX_A72)}
"""In order of preference: the first one whose features a CPU has is used."""
