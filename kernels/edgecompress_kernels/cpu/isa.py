"""The instruction sets that kernels are compiled for, and what each makes of the dot product of bytes."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress_kernels.cpu import dots, matrices

HERE, QEMU = "natively", "under qemu-user"


@dataclass(frozen=True, kw_only=True)
class Isa:
    """One instruction set: how LLVM names it, and the dot products in its own words."""

    name: str
    arch: str
    triple: str
    cpu: str
    features: str
    needs: tuple[str, ...]  # CPU features, in the words of a target's file
    zig: str
    assembler: str = ""  # what the assembler must be told; the shim around the kernels is for any CPU of the kind
    own: str  # LLVM IR of what vector.py leaves to the instruction set
    signed: bool  # its dot product takes both sides signed: weights of 8 bits are taken less 128
    vectors: int  # of sixteen lanes that its registers hold
    most_rows: int  # of activations in registers at once
    matrices: bool  # it has AMX's tile registers
    verified_on: tuple[str, ...]  # CPUs that ran the tests, and how


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
    name="cortex-a78",  # it has no i8mm: the same instructions as cortex-a76, in another order
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
"""In order of choice: the first that a CPU has all the features for."""
