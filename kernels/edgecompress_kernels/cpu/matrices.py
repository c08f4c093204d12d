"""Products of byte matrices in AMX's eight tile registers, for numba, on plain addresses.

A tile is sixteen rows of up to 64 bytes. As with the dot products of ``dots``, what a kernel calls is defined in LLVM
IR when it is compiled for its CPU: numba compiles on machines that have no tiles. With ``NUMBA_DISABLE_JIT=1`` the
same names are NumPy functions on the same addresses.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import binding, ir

from edgecompress_kernels.cpu import encoder_numpy
from edgecompress_kernels.cpu import vector as v

TILES = 8
SUMS = 6  # tiles of sums: two blocks of sixteen rows by three vectors of outputs
WEIGHTS, ROWS = 6, 7  # the tiles that they are made of
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
    + _function("configure", "i64 %at", "%p = inttoptr i64 %at to ptr", f"{_VOID}.ldtilecfg(ptr %p)")
    + _function("release", "", f"{_VOID}.tilerelease()")
    + "".join(_function(f"clear_{i}", "", f"{_VOID}.tilezero(i8 {i})") for i in range(SUMS))
    + _moved("read", "tileloadd64")
    + _moved("write", "tilestored64")
    + "".join(_function(f"multiply_{i}", "", f"{_VOID}.tdpbusd(i8 {i}, i8 {ROWS}, i8 {WEIGHTS})") for i in range(SUMS))
)
"""What ``matrices`` calls, in LLVM IR."""


def matrices(row_bytes: int) -> SimpleNamespace:
    """Tiles whose rows of activations are ``row_bytes`` (a multiple of 4, 64 at most), as are an output's weights.

    fill(config), load(config)   to begin with; ``config`` is CONFIG_BYTES of memory
    release()             to end with
    clear[i]()            sums i are zero
    read_weights(at, stride), read_rows(at, stride)   sixteen outputs by ``row_bytes`` weights, in lanes of four; rows
    multiply[i]()         sums i + unsigned bytes of the rows times signed weights
    write[i](at, stride)  sums i as int32 [16, 16]
    """
    if not v.JIT:
        made: SimpleNamespace = encoder_numpy.matrices(row_bytes)
        return made

    def call(name: str, kinds: str) -> Any:
        symbol = f"{_PREFIX}_{name}"
        binding.add_symbol(symbol, 1)  # numba links what it compiles at once

        def emit(builder: Any, *values: Any) -> None:
            v._call(builder, symbol, v.VOID, *values)

        return v._define(kinds, emit, name=name)

    def write_config(builder: Any, at: Any) -> None:
        """Palette 1; bytes a row of each tile as 16 bits from byte 16, rows of each from byte 48."""
        for i, value in enumerate(_config(row_bytes)):
            place = builder.add(at, ir.Constant(v.I64, i))
            builder.store(ir.Constant(v.I8, value), v._at(builder, place, v.I8), align=1)

    return SimpleNamespace(
        fill=v._define("- a", write_config, name="write_config"),
        load=call("configure", "- a"),
        release=call("release", "-"),
        clear=[call(f"clear_{i}", "-") for i in range(SUMS)],
        read_weights=call(f"read_{WEIGHTS}", "- a a"),
        read_rows=call(f"read_{ROWS}", "- a a"),
        multiply=[call(f"multiply_{i}", "-") for i in range(SUMS)],
        write=[call(f"write_{i}", "- a a") for i in range(SUMS)],
    )


def _config(row_bytes: int) -> bytes:
    config = bytearray(CONFIG_BYTES)
    config[0] = 1
    for tile in range(TILES):
        config[16 + 2 * tile] = row_bytes if tile == ROWS else 64
        config[48 + tile] = row_bytes // 4 if tile == WEIGHTS else 16
    return bytes(config)
