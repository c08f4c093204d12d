"""Compiles kernels ahead of time, without a GPU, to a cubin and a record each.

``python -m edgecompress_kernels.gpu.aot OUT --capability 8.9`` compiles all variants for a chip into OUT/sm_89/;
without --capability, for every chip. It rejects kernels with spilled registers or too much shared memory.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon.language import NVMMASharedLayout

from edgecompress_kernels.gpu.catalogue import verified
from edgecompress_kernels.gpu.chips import BLOCK_REGISTERS, CHIPS, MOST_REGISTERS, Chip, ChipError, chip
from edgecompress_kernels.gpu.cubin import CubinError, CubinFacts, cubin_facts
from edgecompress_kernels.gpu.record import KernelRecord, record_of, write_kernel
from edgecompress_kernels.gpu.variants import Variant, variants

try:
    from triton.experimental.gluon import GluonASTSource
except ImportError:  # Triton before 3.9, such as the 3.7 that torch 2.13 brings
    from triton.experimental.gluon._runtime import GluonASTSource

SCRATCH_POINTERS = 2  # appended to a kernel\'s parameters by Triton 3.7 and 3.9
_SIZES = {"i32": 4, "fp32": 4}
_BANK = 0x210  # offset of parameters in 9.0's constant bank; maps are aligned to 64 from the bank's start
_MAP = ("tensor map", "i32", "i32", "i32", "i64", "i64", "i64")  # a map's parameters: the map, its shape, its strides


class AotError(Exception):
    """A kernel cannot be compiled, or fails the checks for shipping; the message names it and the reason."""


def compile_variant(variant: Variant) -> tuple[KernelRecord, bytes]:
    """Return the record and the cubin of a variant, without linting it.

    Raises AotError if it does not compile, or if the cubin's parameters do not match the record.
    """
    triton.knobs.compilation.disable_line_info = True  # otherwise the cubin contains this machine's paths
    function = getattr(importlib.import_module(variant.kernel.module), variant.kernel.function)
    if not hasattr(function, "cache_key"):
        raise AotError("TRITON_INTERPRET is set, which disables compilation: unset it")
    names = list(function.arg_names)
    signature = variant.signature | dict.fromkeys(variant.constants, "constexpr")
    if names != list(signature):
        raise AotError(f"{variant.kernel.function} does not have the parameters in its table: {', '.join(names)}")
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    major, minor = variant.chip.capability
    options: dict[str, Any] = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": True,
    }
    source = ASTSource
    if variant.boxes:
        source, options["maxnreg"] = GluonASTSource, variant.registers
        dtype = signature["out"].removeprefix("*")
        layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
        for name, (rows, columns) in variant.boxes.items():
            signature[name] = f"tensordesc<{dtype}[1, {rows}, {columns}],{layout!r}>"
    try:
        compiled = triton.compile(
            source(function, signature, constexprs=variant.constants, attrs=attributes),
            target=GPUTarget("cuda", 10 * major + minor, 32),
            options=options,
        )
        cubin = compiled.asm["cubin"]
        facts = cubin_facts(cubin)
    except CubinError as error:
        raise AotError(f"{variant.name} for {variant.chip.name}: {error}") from error
    except Exception as error:  # Triton raises many types, containing its compiler's output
        raise AotError(f"{variant.name} does not compile for {variant.chip.name}: {error}") from error
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
        raise AotError(
            f"{variant.name} for {variant.chip.name} needs scratch memory or clusters, which a launch does not provide"
        )
    _check_parameters(variant, facts)
    record = record_of(
        variant,
        symbol=facts.kernel,
        num_warps=metadata.num_warps,
        shared_bytes=metadata.shared,
        registers=facts.registers,
        stack_bytes=facts.stack_bytes,
        scratch_pointers=SCRATCH_POINTERS,
        triton_version=triton.__version__,
        maps=_maps(variant, metadata.tensordesc_meta),
        sha256=hashlib.sha256(cubin).hexdigest(),
        verified=verified(variant.chip.capability),
    )
    return record, cubin


def _maps(variant: Variant, compiled: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return how the copy engine must read each map, as the compiler laid it out."""
    return {
        name: {"box": list(of["block_size"]), "swizzle": of["swizzle"], "element_bytes": of["elem_size"]}
        for name, of in zip(variant.boxes, compiled or (), strict=True)
    }


def parameter_bytes(kinds: Iterable[str]) -> int:
    """Bytes of a call's parameters, each aligned to its size; a tensor map has 128 bytes, aligned to 64."""
    at = _BANK
    for part in (part for kind in kinds for part in (_MAP if kind == "map" else (kind,))):
        size, align = (128, 64) if part == "tensor map" else (_SIZES.get(part, 8),) * 2
        at = -(-at // align) * align + size
    return at - _BANK


def _check_parameters(variant: Variant, facts: CubinFacts) -> None:
    expected = parameter_bytes([*variant.signature.values(), *["*"] * SCRATCH_POINTERS])
    if facts.parameter_bytes != expected:
        raise AotError(
            f"{variant.name} takes {facts.parameter_bytes} bytes of parameters, not {expected}: "
            "this version of Triton uses another calling convention than a launch"
        )


def lint(record: KernelRecord, chip: Chip) -> list[str]:
    """Return what is wrong with a compiled kernel on its chip; empty if it can be shipped."""
    found = []
    if record.stack_bytes:
        found.append(f"spills {record.stack_bytes} bytes per thread: use a smaller tile or more warps")
    if record.shared_bytes > chip.shared_bytes:
        found.append(f"needs {record.shared_bytes} bytes of shared memory, but a block has at most {chip.shared_bytes}")
    if record.registers > MOST_REGISTERS or record.registers * record.threads > BLOCK_REGISTERS:
        found.append(f"needs {record.registers} registers in {record.threads} threads, more than a block has")
    return found


def build(out: Path, chips: Sequence[Chip], only: str = "", soft_cap: bool = False) -> list[KernelRecord]:
    """Compile, lint and write all variants whose name contains ``only``.

    Raises AotError, after trying all, naming each kernel that fails; those are not written.
    """
    written, refused = [], []
    for of in chips:
        folder = out / f"sm_{of.capability[0]}{of.capability[1]}"
        for variant in variants(of, soft_cap=soft_cap):
            if only not in variant.name:
                continue
            start = time.perf_counter()
            record, cubin = compile_variant(variant)
            wrong = lint(record, of)
            print(
                f"{of.name} {variant.name}: {record.registers} registers, {record.shared_bytes} bytes shared, "
                f"{time.perf_counter() - start:.1f} s{''.join('; ' + text for text in wrong)}",
                file=sys.stderr,
            )
            if wrong:
                refused.append(f"{of.name} {variant.name}: {'; '.join(wrong)}")
                continue
            write_kernel(record, cubin, folder)
            written.append(record)
    if refused:
        raise AotError("\n".join([f"{len(refused)} kernels do not fit their chip:", *refused]))
    if not written:
        raise AotError(f"no variant's name contains '{only}'")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgecompress_kernels.gpu.aot", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    names = [of.name for of in CHIPS.values()]
    parser.add_argument(
        "--capability", action="append", default=[], metavar="X.Y", help=f"one of {', '.join(names)}; can be repeated"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only variants whose name contains TEXT")
    parser.add_argument("--soft-cap", action="store_true", help="attention with soft caps, for Gemma 2")
    options = parser.parse_args(arguments)
    try:
        chips = [chip(_capability(text)) for text in options.capability] or list(CHIPS.values())
        records = build(options.out, chips, options.only, options.soft_cap)
    except ChipError as error:
        print(f"edgecompress: {error}", file=sys.stderr)
        return 2
    except AotError as error:
        print(f"edgecompress: {error}", file=sys.stderr)
        return 3
    for of in chips:
        count = sum(record.capability == of.name for record in records)
        print(f"{count} kernels for {of.name} in {options.out}, linted; {verified(of.capability)}")
    return 0


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise ChipError(f"'{text}' is not a compute capability; write it as 8.9")
    return int(major), int(minor)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # otherwise Triton's bindings for Gluon print a hundred lines about leaks
