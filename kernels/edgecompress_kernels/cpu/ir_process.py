"""The process in which numba compiles kernels: reads tasks from stdin, writes IR to stdout."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from collections.abc import Callable
from operator import attrgetter

from numba import cfunc, types

from edgecompress_kernels.cpu.compile import inline
from edgecompress_kernels.cpu.ir import IR

_SIGNATURE = types.void(types.int64, types.int64)


def compile_kernel(make: Callable[..., Callable[[int, int], None]], arguments: tuple[object, ...]) -> IR:
    jit = (inline,) if "jit" in inspect.signature(make).parameters else ()
    compiled = cfunc(_SIGNATURE, nopython=True, error_model="numpy")(make(*arguments, *jit))
    return compiled.native_name, compiled.inspect_llvm()


def main() -> None:
    made = []
    for module, name, arguments in pickle.load(sys.stdin.buffer):
        made.append(compile_kernel(attrgetter(name)(importlib.import_module(module)), arguments))
    pickle.dump(made, sys.stdout.buffer)


if __name__ == "__main__":
    main()
