"""Vector operations for attention with an int8 cache: repacking bytes for pair products, and tiles of rows.

As in ``vector``, every operation is LLVM on ``<16 x i32>`` or ``<16 x float>``, and with ``NUMBA_DISABLE_JIT=1`` the
same names are NumPy functions on the same addresses. Shuffles stay within 128 bits, one instruction on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llvmlite import binding, ir

from edgecompress_kernels.cpu import attention_numpy
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.vector import BYTES, F32, F32X16, I8, I32, I32X16, I64, INTS, LANES, U8X64, Rows

DOT_WIDE = "edgecompress_dot_wide"  # dots.py
I16 = ir.IntType(16)
_Q = range(4)  # 128-bit quarters of a vector
if v.JIT:
    binding.add_symbol(DOT_WIDE, 1)


def _define(kinds: str, emit: Callable[..., Any], name: str, extra: dict[str, Any] | None = None) -> Any:
    return v._define(kinds, emit, extra, name=name) if v.JIT else getattr(attention_numpy, name)


def _shuffle(builder: Any, a: Any, b: Any, mask: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(mask)), mask))


def _plus(builder: Any, address: Any, count: int) -> Any:
    return builder.add(address, ir.Constant(I64, count))


def _quarters(builder: Any, address: Any, stride: int, element: Any) -> Any:
    """Load 16 bytes from each of four addresses as one vector of 32-bit elements."""
    kind = ir.VectorType(element, 4)
    parts = [builder.load(v._at(builder, _plus(builder, address, stride * i), kind), align=1) for i in _Q]
    halves = [_shuffle(builder, parts[i], parts[i + 1], list(range(8))) for i in (0, 2)]
    return _shuffle(builder, halves[0], halves[1], list(range(LANES)))


def _unpack(builder: Any, a: Any, b: Any, width: int, high: bool) -> Any:
    """Interleave the low or high halves of each 128 bits of ``a`` and ``b``, ``width`` elements at a time."""
    count = a.type.count
    quarter = count // 4
    mask = []
    for first in range(0, count, quarter):
        for at in range(quarter // 2 * high, quarter // 2 * (1 + high), width):
            mask += [first + at + i for i in range(width)] + [count + first + at + i for i in range(width)]
    return _shuffle(builder, a, b, mask)


def _store_shorts(builder: Any, address: Any, value: Any) -> None:
    """Store as int16, with the second and third of every four swapped, as ``dot_wide`` expects."""
    order = [4 * q + i for q in _Q for i in (0, 2, 1, 3)]
    narrow = builder.trunc(value, ir.VectorType(I16, LANES))
    builder.store(_shuffle(builder, narrow, narrow, order), v._at(builder, address, narrow.type), align=2)


def _copy_bytes(builder: Any, to: Any, source: Any) -> None:
    kind = ir.VectorType(I8, LANES)
    builder.store(builder.load(v._at(builder, source, kind), align=1), v._at(builder, to, kind), align=1)


divide = _define("F F F", lambda b, x, y: b.fdiv(x, y), "divide")
store_shorts = _define("- a I", _store_shorts, "store_shorts")
copy_bytes = _define("- a a", _copy_bytes, "copy_bytes")
to_float = _define("f i", lambda b, x: b.sitofp(x, F32), "to_float")
load_quarters = _define("F a", lambda b, address: _quarters(b, address, BYTES, F32), "load_quarters")


def layout(size: int) -> SimpleNamespace:
    """Operations that repack a cache's bytes, in rows of ``size``, to vectors with four bytes per lane.

    keys(rows, to)    16 bytes of 16 rows: four vectors; lane t of vector c holds bytes 4 c to 4 c + 3 of row t
    values(rows, to)  64 bytes of four rows: four vectors; a lane holds one byte of each row, lane 4 l + i of vector j
                      that of channel 16 l + 4 j + i
    rest(rows, to)    16 bytes of four rows: one vector, lane i for channel i
    """
    if not v.JIT:
        return attention_numpy.layout(size)

    def keep(b: Any, vectors: list[Any], to: Any) -> None:
        for i, found in enumerate(vectors):
            b.store(found, v._at(b, _plus(b, to, BYTES * i), found.type), align=4)

    def keys(b: Any, rows: Any, to: Any) -> None:
        r = [_quarters(b, _plus(b, rows, size * i), 4 * size, I32) for i in _Q]
        pairs = [[_unpack(b, r[i], r[i + 1], 1, high) for high in (False, True)] for i in (0, 2)]
        keep(b, [_unpack(b, pairs[0][c // 2], pairs[1][c // 2], 2, bool(c % 2)) for c in _Q], to)

    def values(b: Any, rows: Any, to: Any) -> None:
        r = [b.load(v._at(b, _plus(b, rows, size * i), U8X64), align=1) for i in _Q]
        pairs = [[_unpack(b, r[i], r[i + 1], 1, high) for high in (False, True)] for i in (0, 2)]
        keep(b, [_unpack(b, pairs[0][j // 2], pairs[1][j // 2], 2, bool(j % 2)) for j in _Q], to)

    def rest(b: Any, rows: Any, to: Any) -> None:
        kind = ir.VectorType(I8, LANES)
        r = [b.load(v._at(b, _plus(b, rows, size * i), kind), align=1) for i in _Q]
        pairs = [_shuffle(b, r[i], r[i + 1], [x for c in range(LANES) for x in (c, LANES + c)]) for i in (0, 2)]
        mask = [x for c in range(LANES) for x in (2 * c, 2 * c + 1, 32 + 2 * c, 33 + 2 * c)]
        keep(b, [_shuffle(b, pairs[0], pairs[1], mask)], to)

    return SimpleNamespace(
        keys=v._define("- a a", keys, name="keys"),
        values=v._define("- a a", values, name="values"),
        rest=v._define("- a a", rest, name="rest"),
    )


def tile(count: int) -> SimpleNamespace:
    """Operations on ``count`` rows of one vector. Values of consecutive rows are ``stride`` bytes apart.

    zeros()                              ints
    dot(ints, bytes, x, stride)          + the four signed bytes of each lane times the four shorts of each row
    scale(ints, factors, step, to, stride)  write ints * each row's float; these floats are ``step`` bytes apart
    gather(ints, old, new, to, stride)   each row = row * its float at ``old`` + ints * its float at ``new``
    """
    if not v.JIT:
        return attention_numpy.tile(count)
    ints = Rows(INTS, count)
    extra = {"R": ints}

    def at(b: Any, address: Any, stride: Any, row: int) -> Any:
        return b.add(address, b.mul(stride, ir.Constant(I64, row)))

    def value(b: Any, address: Any, kind: Any) -> Any:
        return v._splat(b, b.load(v._at(b, address, kind), align=4), ir.VectorType(kind, LANES))

    def fill(b: Any, of_row: Callable[[int], Any]) -> Any:
        made = ir.Constant(ints.llvm, ir.Undefined)
        for r in range(count):
            made = b.insert_value(made, of_row(r), r)
        return made

    def zeros(b: Any) -> Any:
        return fill(b, lambda r: v._const(0))

    def dot(b: Any, sums: Any, side: Any, x: Any, stride: Any) -> Any:
        weights = b.bitcast(b.load(v._at(b, side, I32X16), align=4), U8X64)

        def of_row(r: int) -> Any:
            here = at(b, x, stride, r)
            pairs = value(b, here, I32), value(b, _plus(b, here, 4), I32)
            return v._call(b, DOT_WIDE, I32X16, b.extract_value(sums, r), weights, *pairs)

        return fill(b, of_row)

    def scale(b: Any, sums: Any, factors: Any, step: Any, to: Any, stride: Any) -> None:
        for r in range(count):
            factor = value(b, at(b, factors, step, r), F32)
            found = b.fmul(b.sitofp(b.extract_value(sums, r), F32X16), factor)
            b.store(found, v._at(b, at(b, to, stride, r), F32X16), align=4)

    def gather(b: Any, sums: Any, old: Any, new: Any, to: Any, stride: Any) -> None:
        for r in range(count):
            place = v._at(b, at(b, to, stride, r), F32X16)
            kept = b.fmul(b.load(place, align=4), value(b, _plus(b, old, 4 * r), F32))
            whole = b.sitofp(b.extract_value(sums, r), F32X16)
            b.store(v._fma(b, whole, value(b, _plus(b, new, 4 * r), F32), kept), place, align=4)

    return SimpleNamespace(
        zeros=v._define("R", zeros, extra, name="zeros"),
        dot=v._define("R R a a a", dot, extra, name="dot"),
        scale=v._define("- R a a a a", scale, extra, name="scale"),
        gather=v._define("- R a a a a", gather, extra, name="gather"),
    )
