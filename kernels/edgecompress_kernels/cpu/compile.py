"""A numba kernel as an object file for another CPU: its LLVM IR, compiled again by llvmlite for that CPU alone."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from llvmlite import binding as llvm
from numba import cfunc, njit, types

from edgecompress_kernels.cpu.isa import Isa

_SIGNATURE = types.void(types.int64, types.int64)
_ALLOWED = ("llvm.", "memset", "memcpy")  # what an object may ask for from outside


class KernelError(Exception):
    """A kernel cannot be compiled; the message says which and why."""


def inline(function: Callable[..., Any]) -> Any:
    """Compiled into whatever calls it."""
    return njit(error_model="numpy", no_cpython_wrapper=True)(function)


@dataclass(frozen=True)
class Kernel:
    """A kernel by what makes it and with what, so that it is known again in another process."""

    key: str
    make: Callable[[], Callable[[int, int], None]] = field(compare=False, repr=False)


def kernel_of(make: Callable[..., Callable[[int, int], None]], *arguments: Any) -> Kernel:
    """``make(*arguments)``, with ``inline`` behind them if it takes a ``jit``. Arguments are told by their repr."""
    jit = (inline,) if "jit" in inspect.signature(make).parameters else ()
    source = hashlib.sha256(Path(inspect.getfile(inspect.unwrap(make))).read_bytes()).hexdigest()
    return Kernel(f"{source} {make.__module__}.{make.__qualname__}{arguments!r}", lambda: make(*arguments, *jit))


def cache_dir() -> Path:
    """Where the IR of kernels is kept between processes: numba takes seconds for each."""
    return platformdirs.user_cache_path("edgecompress") / "kernels"


@cache
def _fingerprint() -> str:
    """Of what a kernel's IR depends on beside its own source: all of these, and the versions of the compilers."""
    found = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


@cache
def to_ir(kernel: Kernel) -> tuple[str, str]:
    """The name of the kernel's C entry and its LLVM IR, before any optimization: the same for every CPU.

    From the cache if it is there; one that cannot be read or written costs time alone.
    """
    path = cache_dir() / f"{hashlib.sha256((_fingerprint() + kernel.key).encode()).hexdigest()}.ll.z"
    try:
        entry, _, text = zlib.decompress(path.read_bytes()).decode().partition("\n")
    except (OSError, zlib.error, UnicodeDecodeError):
        entry, text = _compiled(kernel.make())
        _keep(path, zlib.compress(f"{entry}\n{text}".encode(), 1))
    return entry, text


def _keep(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError:
        pass  # a full disk, or a home that is read-only


def _compiled(kernel: Callable[[int, int], None]) -> tuple[str, str]:
    before = numba.config.OPT
    numba.config.OPT = type(before)(0)  # the IR must not be shaped for this machine
    try:
        compiled = cfunc(_SIGNATURE, nopython=True, error_model="numpy")(kernel)
    finally:
        numba.config.OPT = before
    return compiled.native_name, compiled.inspect_llvm()


def to_assembly(kernels: Mapping[str, Kernel], isa: Isa) -> str:
    """The assembly text of an entry ``void name(int64 parameters, int64 part)`` for each kernel.

    Raises KernelError if it would need anything from outside but memset and memcpy.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(isa.triple).create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="small"
    )
    whole = None
    for name, kernel in kernels.items():
        entry, text = to_ir(kernel)
        module = llvm.parse_assembly(text)
        module.link_in(llvm.parse_assembly(isa.own))
        for function in module.functions:
            if function.name == entry:
                function.name = name
                function.visibility = "hidden"
            elif not function.is_declaration:
                function.linkage = "internal"
        for variable in module.global_variables:
            if not variable.is_declaration:
                variable.linkage = "internal"
        module.triple, module.data_layout = isa.triple, str(machine.target_data)
        _optimize(module, machine)
        _check(name, module)
        if whole is None:
            whole = module
        else:
            whole.link_in(module)
    if whole is None:
        raise KernelError("there is no kernel to compile")
    return machine.emit_assembly(whole)  # type: ignore[no-any-return]


def _optimize(module: Any, machine: Any) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def _check(name: str, module: Any) -> None:
    outside = [f.name for f in module.functions if f.is_declaration and not f.name.startswith(_ALLOWED)]
    if outside:
        raise KernelError(f"the kernel '{name}' needs {', '.join(outside)}, which no device has")
