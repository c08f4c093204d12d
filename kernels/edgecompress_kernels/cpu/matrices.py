"""Products of byte matrices in AMX's eight tile registers, for numba, on plain addresses.

A tile is sixteen rows of up to 64 bytes. Like the dot products of ``dots``, the functions that a kernel calls are
defined in LLVM IR when the kernel is compiled for its CPU, since numba also compiles on machines without AMX. With
``NUMBA_DISABLE_JIT=1`` the same names are NumPy functions on the same addresses.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import binding, ir

from edgecompress_kernels.cpu import encoder_numpy
from edgecompress_kernels.cpu import vector as v

TILES = 8
SUMS = 6  # tiles of sums: two blocks of sixteen rows by three vectors of outputs
WEIGHTS, ROWS = 6, 7  # the tiles of operands
CONFIG_BYTES = 64
_PREFIX = "edgecompress_tile"
_VOID = "call void @llvm.x86"


def _function(name: str, parameters: str, *lines: str) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"define void @{_PREFIX}_{name}({parameters}) alwaysinline nounwind {{\n{body}  ret void\n}}\n"


def _moved(kind: str, intrinsic: str) -> str:
    return "".join(
        _function(
            f"{kind}_{i}",
            "i64 %at, i64 %stride",
            "%p = inttoptr i64 %at to ptr",
            f"{_VOID}.{intrinsic}(i8 {i}, ptr %p, i64 %stride)",
        )
        for i in range(TILES)
    )


AMX = (
    """declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.tdpbusd(i8 immarg, i8 immarg, i8 immarg)
"""
    + _function("load", "i64 %at", "%p = inttoptr i64 %at to ptr", f"{_VOID}.ldtilecfg(ptr %p)")
    + _function("release", "", f"{_VOID}.tilerelease()")
    + "".join(_function(f"clear_{i}", "", f"{_VOID}.tilezero(i8 {i})") for i in range(SUMS))
    + _moved("read", "tileloadd64")
    + _moved("write", "tilestored64")
    + "".join(_function(f"multiply_{i}", "", f"{_VOID}.tdpbusd(i8 {i}, i8 {ROWS}, i8 {WEIGHTS})") for i in range(SUMS))
)
"""LLVM IR of the functions that ``matrices`` calls."""


def matrices(row_bytes: int, blocks: int) -> SimpleNamespace:
    """Operations on 16 * ``blocks`` (1 or 2) rows by three output vectors; ``row_bytes``: a multiple of 4, at most 64.

    fill(config), load(config)   call first; ``config`` is CONFIG_BYTES of memory
    release()                    call last
    clear()                      set all sums to zero
    multiply(rows, row_stride, weights, weight_stride)   + unsigned bytes at ``rows`` times signed weights, four of each
                                 of 48 outputs a line of ``weight_stride`` bytes
    products()                   + the products of the loaded tiles, for every sum: for benchmarks
    write(at, stride)            sums as int32 [16 * blocks, 48]
    """
    if not v.JIT:
        made: SimpleNamespace = encoder_numpy.matrices(row_bytes, blocks)
        return made

    def defined(symbol: str) -> str:
        binding.add_symbol(f"{_PREFIX}_{symbol}", 1)  # numba links compiled code immediately
        return f"{_PREFIX}_{symbol}"

    def call(builder: Any, name: str, *values: Any) -> None:
        v._call(builder, names[name], v.VOID, *values)

    def further(builder: Any, at: Any, stride: Any, lines: int, offset: int) -> Any:
        """``at`` + ``lines`` * ``stride`` + ``offset`` bytes."""
        return builder.add(builder.add(at, builder.mul(stride, ir.Constant(v.I64, lines))), ir.Constant(v.I64, offset))

    sums = [(block, vector) for block in range(blocks) for vector in range(3)]
    ahead = ["load", "release", *(f"{kind}_{i}" for kind in ("clear", "multiply", "write") for i in range(SUMS))]
    names = {name: defined(name) for name in (*ahead, f"read_{WEIGHTS}", f"read_{ROWS}")}

    def write_config(builder: Any, at: Any) -> None:
        for i, value in enumerate(_config(row_bytes)):
            place = builder.add(at, ir.Constant(v.I64, i))
            builder.store(ir.Constant(v.I8, value), v._at(builder, place, v.I8), align=1)

    def clear(builder: Any) -> None:
        for block, vector in sums:
            call(builder, f"clear_{3 * block + vector}")

    def multiply(builder: Any, rows: Any, row_stride: Any, weights: Any, weight_stride: Any) -> None:
        held = -1  # the block whose rows are loaded; rows are reused for two products where possible
        for vector in range(3):
            call(builder, f"read_{WEIGHTS}", further(builder, weights, weight_stride, 0, 64 * vector), weight_stride)
            order = range(blocks) if vector % 2 == 0 else reversed(range(blocks))
            for block in order:
                if block != held:
                    call(builder, f"read_{ROWS}", further(builder, rows, row_stride, 16 * block, 0), row_stride)
                    held = block
                call(builder, f"multiply_{3 * block + vector}")

    def products(builder: Any) -> None:
        for block, vector in sums:
            call(builder, f"multiply_{3 * block + vector}")

    def write(builder: Any, at: Any, stride: Any) -> None:
        for block, vector in sums:
            call(builder, f"write_{3 * block + vector}", further(builder, at, stride, 16 * block, 64 * vector), stride)

    return SimpleNamespace(
        fill=v._define("- a", write_config, name="write_config"),
        load=v._define("- a", lambda b, at: call(b, "load", at), name="load_config"),
        release=v._define("-", lambda b: call(b, "release"), name="release"),
        clear=v._define("-", clear, name="clear"),
        multiply=v._define("- a a a a", multiply, name="multiply"),
        products=v._define("-", products, name="products"),
        write=v._define("- a a", write, name="write"),
    )


def _config(row_bytes: int) -> bytes:
    """AMX configuration, palette 1: each tile's bytes per row, 16 bits each, at byte 16, and its rows at byte 48."""
    config = bytearray(CONFIG_BYTES)
    config[0] = 1
    for tile in range(TILES):
        config[16 + 2 * tile] = row_bytes if tile == ROWS else 64
        config[48 + tile] = row_bytes // 4 if tile == WEIGHTS else 16
    return bytes(config)
