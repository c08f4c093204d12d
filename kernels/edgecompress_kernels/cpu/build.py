"""Compiles the kernels that a model needs into one library of custom ops, for one instruction set."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from edgecompress_kernels.cpu import abi, attention, attention_int8, blockwise, encoder_attention, encoder_layer, rows
from edgecompress_kernels.cpu.abi_header import checks, header, kernel_declarations, registration, variant_row
from edgecompress_kernels.cpu.compile import to_assembly
from edgecompress_kernels.cpu.encoder_layer import Encoder
from edgecompress_kernels.cpu.ir import KernelError, cache_dir, fingerprint, keep, kernel_of, read_kept
from edgecompress_kernels.cpu.isa import Isa

_PARTS = ("cpu", "shim", "shim_job", "shim_matmul", "shim_attention", "shim_layer", "shim_encoder", "shim_register")
SHIMS = Path(__file__).parent  # the folder of the shims and shim.h
SOURCES = tuple(SHIMS / f"{name}.c" for name in _PARTS)  # one translation unit
_HEAD_SIZES = range(16, 257, 16)
_FLAGS = (
    "-O2", "-fPIC", "-fvisibility=hidden", "-fno-stack-protector", "-fno-sanitize=all", "-nostdlib", "-shared", "-s",
    "-Wl,--build-id=none", "-Wl,-z,noexecstack",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, order=True)
class Matmul:
    """A blockwise matrix: 4 or 8 bits, block size, whether scales are float16, whether it has zero points."""

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
    """Attention with a float32 or int8 cache, for one head size."""

    head_size: int
    int8: bool = False


def build(
    matmuls: Sequence[Matmul], attentions: Sequence[Attention], isa: Isa, encoders: Sequence[Encoder] = ()
) -> bytes:
    """Return the bytes of a library with these kernels. The same input gives the same bytes, which are cached on disk.

    Raises KernelError if a kernel cannot be compiled or linked.
    """
    wanted = sorted(set(matmuls)), sorted(set(attentions)), sorted(set(encoders))
    path = cache_dir() / f"{hashlib.sha256(f'{_fingerprint()} {wanted} {isa}'.encode()).hexdigest()}.so.z"
    library = read_kept(path)
    if library is None:
        library = _build(*wanted, isa)
        keep(path, library)
    return library


@cache
def _fingerprint() -> str:
    """A hash of everything but the kernels that a library depends on, including the shims and their compiler."""
    found = hashlib.sha256(f"{fingerprint()} {version('ziglang')}".encode())
    for source in (*SOURCES, SHIMS / "shim.h"):
        found.update(source.read_bytes())
    return found.hexdigest()


def _build(matmuls: Sequence[Matmul], attentions: Sequence[Attention], encoders: Sequence[Encoder], isa: Isa) -> bytes:
    """Build the library. Kernels of each kind are sorted and unique."""
    kernels = {name: kernel_of(getattr(rows, name)) for name in abi.ROW_KERNELS}
    tables: dict[str, list[str]] = {table: [] for variants in abi.VARIANTS for table in variants.tables}
    for matmul in matmuls:
        quantizer = f"quantize_{matmul.block}"
        kernels[quantizer] = kernel_of(blockwise.quantize_rows, matmul.block)
        kernels[matmul.name] = kernel_of(
            blockwise.multiply, matmul.bits, matmul.block, matmul.half, matmul.zero_points, isa.signed, isa.most_rows
        )
        row = variant_row(
            abi.MATMUL_VARIANTS, bits=matmul.bits, block=matmul.block, half=int(matmul.half),
            zeros=int(matmul.zero_points), quantize=quantizer, multiply=matmul.name,
        )  # fmt: skip
        tables["MATMULS"].append(row)
    for kind in attentions:
        size = kind.head_size
        of: ModuleType = attention_int8 if kind.int8 else attention
        if kind.int8:
            table, suffix, attend = "INT8_ATTENTIONS", f"int8_{size}", kernel_of(attention_int8.attend, size)
        else:
            table, suffix, attend = "ATTENTIONS", f"{size}", kernel_of(attention.attend, size, isa.vectors)
        parts = {"append": kernel_of(of.append, size), "attend": attend, "combine": kernel_of(of.combine, size)}
        kernels |= {f"{part}_{suffix}": kernel for part, kernel in parts.items()}
        names = {part: f"{part}_{suffix}" for part in parts}
        tables[table].append(variant_row(abi.ATTENTION_VARIANTS, size=size, **names))
    for encoder in encoders:
        makers = {"project": encoder_layer.project_first, "layer": encoder_layer.layer}
        names = {part: f"{part}_{encoder.name}" for part in makers}
        kernels |= {names[part]: kernel_of(make, encoder, isa.vectors, isa.matrices) for part, make in makers.items()}
        row = variant_row(
            abi.ENCODER_VARIANTS, hidden=encoder.hidden, heads=encoder.heads, feed_forward=encoder.feed_forward,
            weight_bits=encoder.weight_bits, **names,
        )  # fmt: skip
        tables["ENCODERS"].append(row)
    return link(to_assembly(kernels, isa), shim_source(list(kernels), tables, isa), isa)


def shim_source(kernels: Sequence[str], tables: Mapping[str, Sequence[str]], isa: Isa) -> str:
    """Return the shims as one C translation unit, with the ``tables`` of kernels, table -> rows."""
    types = {table: variants.name for variants in abi.VARIANTS for table in variants.tables}
    return "\n".join(
        [
            *(f'#include "{path.name}"' for path in SOURCES),
            checks(),
            registration(),
            *(_same_bytes("QUERY_BYTES", attention_int8.query_bytes)),
            *(_same_bytes("BLOCK_BYTES", encoder_attention.block_bytes)),
            kernel_declarations([name for name in kernels if name not in abi.ROW_KERNELS]),
            f"const int MATRICES = {int(isa.matrices)};",
            f'const char ISA[] = "{isa.name}";',
            f"const char *const NEEDS[] = {{{_quoted(isa.needs)}, NULL}};",
            *(f"const {types[table]} {table}[] = {{{', '.join([*rows, '{0}'])}}};" for table, rows in tables.items()),
            "",
        ]
    )


def _same_bytes(macro: str, bytes_of: Callable[[int], int]) -> Iterator[str]:
    """Yield C that fails to compile if shims and kernels disagree on a buffer's size."""
    for size in _HEAD_SIZES:
        yield f'_Static_assert({macro}({size}) == {bytes_of(size)}, "{macro} is not what the kernels take");'


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def link(kernels: str, source: str, isa: Isa) -> bytes:
    """Compile the shims with zig's C compiler and link them with the kernels. Raises KernelError."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "kernels.s").write_text(isa.assembler + kernels, encoding="utf-8")
        (where / "library.c").write_text(source, encoding="utf-8")
        (where / "abi.h").write_text(header(), encoding="utf-8")
        command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, "-I", str(SHIMS), "-I", ".", "-target", isa.zig]
        command += ["-o", "library.so", "library.c", "kernels.s"]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(f"the C compiler failed: {done.stderr.strip()[-500:]}")
        return (where / "library.so").read_bytes()
