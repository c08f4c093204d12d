"""The int8 peak of one core, or of several: products of bytes in registers and nothing else.

Measured, not looked up: clocks differ between machines and fall under wide vectors. The weights have seven bits, the
most that x86 without VNNI multiplies at its full rate; elsewhere that makes no difference.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgecompress_kernels.cpu import encoder_vector as e
from edgecompress_kernels.cpu import matrices as m
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.build import link
from edgecompress_kernels.cpu.compile import to_assembly
from edgecompress_kernels.cpu.encoder_linear import tile_sizes
from edgecompress_kernels.cpu.ir import kernel_of
from edgecompress_kernels.cpu.isa import Isa

_TIMES = 2_000_000
_SOURCE = """
#include <stddef.h>
extern void dots(void *, size_t);
__attribute__((visibility("default"))) void run(void *parameters, size_t times) { dots(parameters, times); }
"""


def _kernel(rows: int, width: int) -> Callable[[int, int], None]:
    on = e.tile(rows, width)
    zeros, dot, grow, keep = on.zeros, on.dot_narrow, on.grow, on.keep
    load = on.load

    def dots(p: int, times: int) -> None:
        weights, x, out = v.read_address(p), v.read_address(p + 8), v.read_address(p + 16)
        sums = zeros()
        for i in range(times):  # of other numbers each time: a sum of equal ones would be a product
            sums = dot(sums, weights + 64 * (i & 3), 64, x + 4 * (i & 31), 4)
        keep(grow(load(out, 64 * width), sums, v.read_float(x)), out, 64 * width)

    return dots


def _matrix_kernel() -> Callable[[int, int], None]:
    """The same in AMX's tiles: six sums in turn, of one row at ``x`` and one line of weights."""
    on = m.matrices(64, 2)
    fill, load, release, clear = on.fill, on.load, on.release, on.clear
    multiply, products, write = on.multiply, on.products, on.write

    def dots(p: int, times: int) -> None:
        weights, x, out = v.read_address(p), v.read_address(p + 8), v.read_address(p + 16)
        fill(out)
        load(out)
        clear()
        multiply(x, 0, weights, 0)
        for _ in range(times):
            products()
        write(out, 0)
        release()

    return dots


def _ask_for_tiles() -> None:
    """What the kernels' library does when it is registered: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)."""
    if ctypes.CDLL(None).syscall(158, 0x1023, 18) != 0:
        raise OSError("the system does not permit AMX's tiles")


def int8_peak(isa: Isa, threads: int) -> float:
    """Multiply-adds a second of ``threads`` threads together, the best of five runs, in tiles as the encoder's."""
    rows, _, width = tile_sizes(isa.vectors)
    kernel, products = kernel_of(_kernel, rows, width), rows * width * 64
    if isa.matrices:
        _ask_for_tiles()
        kernel, products = kernel_of(_matrix_kernel), m.SUMS * 16 * 16 * 64
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        path.write_bytes(link(to_assembly({"dots": kernel}, isa), _SOURCE, isa))
        run = ctypes.CDLL(str(path)).run
        run.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        buffers = [(ctypes.c_char * 8192)() for _ in range(threads)]
        parameters = []
        for buffer in buffers:
            start = -(-ctypes.addressof(buffer) // 64) * 64
            parameters.append((ctypes.c_int64 * 3)(start, start + 1024, start + 2048))
        with ThreadPoolExecutor(threads) as pool:
            seconds = []
            for _ in range(5):
                began = time.perf_counter()
                list(pool.map(lambda p: run(ctypes.addressof(p), _TIMES), parameters))
                seconds.append(time.perf_counter() - began)
    return threads * _TIMES * products / min(seconds)
