"""Compile the kernels that a model needs into one library of custom ops, for one instruction set."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edgecompress_kernels.cpu import attention, attention_int8, blockwise, encoder_layer, rows
from edgecompress_kernels.cpu.compile import to_assembly
from edgecompress_kernels.cpu.encoder_layer import Encoder
from edgecompress_kernels.cpu.ir import KernelError, kernel_of
from edgecompress_kernels.cpu.isa import Isa

_PARTS = ("cpu", "shim", "shim_job", "shim_matmul", "shim_attention", "shim_layer", "shim_encoder", "shim_register")
SOURCES = tuple(Path(__file__).with_name(f"{name}.c") for name in _PARTS)  # one unit
_FLAGS = (
    "-O2", "-fPIC", "-fvisibility=hidden", "-fno-stack-protector", "-fno-sanitize=all", "-nostdlib", "-shared", "-s",
    "-Wl,--build-id=none", "-Wl,-z,noexecstack",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, order=True)
class Matmul:
    """A matrix in blocks: 4 or 8 bits, its block size, whether scales are float16, whether it has zero points."""

    bits: int
    block: int
    half: bool = False
    zero_points: bool = False

    @property
    def name(self) -> str:
        kind = ("h" if self.half else "f") + ("z" if self.zero_points else "s")
        return f"multiply_{self.bits}_{self.block}_{kind}"


@dataclass(frozen=True, kw_only=True, order=True)
class Attention:
    """Attention over a cache of float32, or of int8, of one head size."""

    head_size: int
    int8: bool = False


def build(
    matmuls: Sequence[Matmul], attentions: Sequence[Attention], isa: Isa, encoders: Sequence[Encoder] = ()
) -> bytes:
    """The library with a kernel for each of these. The same input gives the same bytes.

    Raises KernelError if a kernel cannot be compiled or linked.
    """
    kernels = {
        "add_rows": kernel_of(rows.add_rows),
        "normalize_rows": kernel_of(rows.normalize_rows),
        "gate_rows": kernel_of(rows.gate_rows),
    }
    tables = {"Matmul MATMULS": [], "Attention ATTENTIONS": []}  # type: dict[str, list[str]]
    tables |= {"Attention INT8_ATTENTIONS": [], "Encoder ENCODERS": []}
    for matmul in sorted(set(matmuls)):
        quantizer = f"quantize_{matmul.block}"
        kernels[quantizer] = kernel_of(blockwise.quantize_rows, matmul.block)
        kernels[matmul.name] = kernel_of(
            blockwise.multiply, matmul.bits, matmul.block, matmul.half, matmul.zero_points, isa.signed, isa.most_rows
        )
        flags = f"{int(matmul.half)}, {int(matmul.zero_points)}"
        tables["Matmul MATMULS"].append(f"{{{matmul.bits}, {matmul.block}, {flags}, {quantizer}, {matmul.name}}}")
    for kind in sorted(set(attentions)):
        size = kind.head_size
        of: ModuleType = attention_int8 if kind.int8 else attention
        if kind.int8:
            table, suffix, attend = "INT8_ATTENTIONS", f"int8_{size}", kernel_of(attention_int8.attend, size)
        else:
            table, suffix, attend = "ATTENTIONS", f"{size}", kernel_of(attention.attend, size, isa.vectors)
        names = {
            f"append_{suffix}": kernel_of(of.append, size),
            f"attend_{suffix}": attend,
            f"combine_{suffix}": kernel_of(of.combine, size),
        }
        kernels |= names
        tables[f"Attention {table}"].append(f"{{{size}, {', '.join(names)}}}")
    for encoder in sorted(set(encoders)):
        made = {"project": encoder_layer.project_first, "layer": encoder_layer.layer}
        names = {
            f"{part}_{encoder.name}": kernel_of(make, encoder, isa.vectors, isa.matrices) for part, make in made.items()
        }
        kernels |= names
        sizes = f"{encoder.hidden}, {encoder.heads}, {encoder.feed_forward}, {encoder.weight_bits}"
        tables["Encoder ENCODERS"].append(f"{{{sizes}, {', '.join(names)}}}")
    source = "\n".join(
        [path.read_text(encoding="utf-8") for path in SOURCES]
        + [f"extern void {name}(void *, size_t);" for name in kernels]
        + [
            f"const int MATRICES = {int(isa.matrices)};",
            f'const char ISA[] = "{isa.name}";',
            f"const char *const NEEDS[] = {{{_quoted(isa.needs)}, NULL}};",
        ]
        + [f"const {table}[] = {{{', '.join([*rows, '{0}'])}}};" for table, rows in tables.items()]
    )
    return link(to_assembly(kernels, isa), source, isa)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def link(kernels: str, source: str, isa: Isa) -> bytes:
    """The shim compiled by zig's C compiler and linked with the kernels. Raises KernelError."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "kernels.s").write_text(isa.assembler + kernels, encoding="utf-8")
        (where / "shim.c").write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, "-target", isa.zig, "-o", "library.so"]
        done = subprocess.run([*command, "shim.c", "kernels.s"], cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(f"the C compiler failed: {done.stderr.strip()[-500:]}")
        return (where / "library.so").read_bytes()
