"""A numba kernel as an object file for another CPU: its LLVM IR, compiled again by llvmlite for that CPU alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numba
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


@cache
def to_ir(kernel: Callable[[int, int], None]) -> tuple[str, str]:
    """The name of the kernel's C entry and its LLVM IR, before any optimization: the same for every CPU."""
    before = numba.config.OPT
    numba.config.OPT = type(before)(0)  # the IR must not be shaped for this machine
    try:
        compiled = cfunc(_SIGNATURE, nopython=True, error_model="numpy")(kernel)
    finally:
        numba.config.OPT = before
    return compiled.native_name, compiled.inspect_llvm()


def to_assembly(kernels: Mapping[str, Callable[[int, int], None]], isa: Isa) -> str:
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
