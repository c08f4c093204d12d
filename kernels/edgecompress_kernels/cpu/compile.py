"""Compiles numba kernels for another CPU: llvmlite compiles their LLVM IR for that CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import binding as llvm
from numba import njit

from edgecompress_kernels.cpu.ir import Kernel, KernelError, to_ir
from edgecompress_kernels.cpu.isa import Isa

_ALLOWED = ("llvm.", "memset", "memcpy")  # external symbols that an object can use


def inline(function: Callable[..., Any]) -> Any:
    """Make a function that is inlined into its callers."""
    return njit(error_model="numpy", no_cpython_wrapper=True)(function)


def to_assembly(kernels: Mapping[str, Kernel], isa: Isa) -> str:
    """Return assembly with an entry point ``void name(int64 parameters, int64 part)`` for each kernel.

    Raises KernelError if numba cannot compile a kernel, or if it uses an external symbol other than memset and memcpy.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(isa.triple).create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="small"
    )
    whole = None
    for name, (entry, text) in zip(kernels, to_ir(*kernels.values()), strict=True):
        module = llvm.parse_assembly(text)
        module.link_in(llvm.parse_assembly(isa.own))
        for number, function in enumerate(module.functions):
            if function.name == entry:
                function.name = name
                function.visibility = "hidden"
            elif not function.is_declaration:
                function.name = f"{name}.{number}"  # numba numbers the functions that a process compiles
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
        raise KernelError(f"the kernel '{name}' needs {', '.join(outside)}, which devices do not have")
