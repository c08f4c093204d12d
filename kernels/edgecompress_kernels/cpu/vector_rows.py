"""Operations on the vectors of several rows in registers; ``vector`` has those on single vectors."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu import vector_numpy
from edgecompress_kernels.cpu.vector import BYTES, F32, F32X16, FLOATS, I32, I32X16, I64, INTS, LANES, Rows


def rows(count: int) -> SimpleNamespace:
    """Operations on ``count`` vectors, one per row. Values of consecutive rows are ``stride`` bytes apart.

    start(address, stride, factor)      ints: each row's int32 times ``factor``, in every lane
    start_lanes(address, stride, lanes) ints: each row's int32 times ``lanes``
    zeros()                             floats
    dot(sums, weights, address, stride) sums + the four bytes of each lane times each row's four bytes
    dot_small(…), dot_signed(…)         the same for weights of 0 to 127, and of -128 to 127
    scale(floats, ints, lanes, address, stride)  floats + ints * (lanes * each row's float)
    add(floats, lanes)                  add the same lanes to each row
    store(floats, address, stride, lanes_wanted)  store the first lanes of each row
    """
    ints, floats = Rows(INTS, count), Rows(FLOATS, count)
    extra = {"R": ints, "S": floats}

    def gather(builder: Any, kind: Any, of_row: Callable[[int], Any]) -> Any:
        made = ir.Constant(kind.llvm, ir.Undefined)
        for row in range(count):
            made = builder.insert_value(made, of_row(row), row)
        return made

    def place(builder: Any, address: Any, stride: Any, row: int) -> Any:
        return builder.add(address, builder.mul(stride, ir.Constant(I64, row)))

    def value(builder: Any, address: Any, stride: Any, row: int, kind: Any) -> Any:
        return builder.load(v._at(builder, place(builder, address, stride, row), kind), align=4)

    def start(b: Any, address: Any, stride: Any, factor: Any) -> Any:
        return gather(b, ints, lambda r: v._splat(b, b.mul(value(b, address, stride, r, I32), factor), I32X16))

    def start_lanes(b: Any, address: Any, stride: Any, lanes: Any) -> Any:
        return gather(b, ints, lambda r: b.mul(v._splat(b, value(b, address, stride, r, I32), I32X16), lanes))

    def zeros(b: Any) -> Any:
        return gather(b, floats, lambda r: ir.Constant(F32X16, [0.0] * LANES))

    def dot(name: str) -> Callable[..., Any]:
        def of_rows(b: Any, sums: Any, weights: Any, address: Any, stride: Any) -> Any:
            def of_row(r: int) -> Any:
                bytes_of_row = v._splat(b, value(b, address, stride, r, I32), I32X16)
                return v._dot(b, name, b.extract_value(sums, r), weights, bytes_of_row)

            return gather(b, ints, of_row)

        return of_rows

    def scale(b: Any, sums: Any, found: Any, lanes: Any, address: Any, stride: Any) -> Any:
        def of_row(r: int) -> Any:
            factor = b.fmul(lanes, v._splat(b, value(b, address, stride, r, F32), F32X16))
            return v._fma(b, b.sitofp(b.extract_value(found, r), F32X16), factor, b.extract_value(sums, r))

        return gather(b, floats, of_row)

    def add(b: Any, sums: Any, lanes: Any) -> Any:
        return gather(b, floats, lambda r: b.fadd(b.extract_value(sums, r), lanes))

    def store(b: Any, sums: Any, address: Any, stride: Any, wanted: Any) -> None:
        for r in range(count):
            v._store_part(b, place(b, address, stride, r), b.extract_value(sums, r), wanted)

    if not v.JIT:
        return vector_numpy.rows(count)
    return SimpleNamespace(
        start=v._define("R a a i", start, extra),
        start_lanes=v._define("R a a I", start_lanes, extra),
        zeros=v._define("S", zeros, extra),
        dot=v._define("R R I a a", dot(v.DOT), extra, "dot"),
        dot_small=v._define("R R I a a", dot(v.DOT_SMALL), extra, "dot_small"),
        dot_signed=v._define("R R I a a", dot(v.DOT_SIGNED), extra, "dot_signed"),
        scale=v._define("S S R F a a", scale, extra),
        add=v._define("S S F", add, extra),
        store=v._define("- S a a a", store, extra),
    )


def panel(count: int, width: int) -> SimpleNamespace:
    """Operations on ``count`` rows of ``width`` vectors. Values of consecutive rows are ``stride`` bytes apart.

    load(address, stride)               load the vectors of each row
    grow(floats, address, stride)       multiply each row by its float
    weigh(floats, values, address, stride)  add the vectors at ``values`` times each row's float to the row
    keep(floats, address, stride)       store the vectors of each row
    """
    if not v.JIT:
        return vector_numpy.panel(count, width)
    kind = Rows(FLOATS, count * width)

    def fill(of_place: Callable[[int, int], Any], builder: Any) -> Any:
        made = ir.Constant(kind.llvm, ir.Undefined)
        for row in range(count):
            for column in range(width):
                made = builder.insert_value(made, of_place(row, column), row * width + column)
        return made

    def place(b: Any, address: Any, stride: Any, row: int, column: int = 0) -> Any:
        return b.add(b.add(address, b.mul(stride, ir.Constant(I64, row))), ir.Constant(I64, BYTES * column))

    def factors(b: Any, address: Any, stride: Any) -> list[Any]:
        return [v._splat(b, b.load(v._at(b, place(b, address, stride, r), F32), align=4), F32X16) for r in range(count)]

    def load(b: Any, address: Any, stride: Any) -> Any:
        return fill(lambda r, c: b.load(v._at(b, place(b, address, stride, r, c), F32X16), align=4), b)

    def grow(b: Any, sums: Any, address: Any, stride: Any) -> Any:
        factor = factors(b, address, stride)
        return fill(lambda r, c: b.fmul(b.extract_value(sums, r * width + c), factor[r]), b)

    def weigh(b: Any, sums: Any, values: Any, address: Any, stride: Any) -> Any:
        factor = factors(b, address, stride)
        lanes = [b.load(v._at(b, place(b, values, stride, 0, c), F32X16), align=4) for c in range(width)]
        return fill(lambda r, c: v._fma(b, lanes[c], factor[r], b.extract_value(sums, r * width + c)), b)

    def keep(b: Any, sums: Any, address: Any, stride: Any) -> None:
        for r in range(count):
            for c in range(width):
                where = v._at(b, place(b, address, stride, r, c), F32X16)
                b.store(b.extract_value(sums, r * width + c), where, align=4)

    extra = {"S": kind}
    return SimpleNamespace(
        load=v._define("S a a", load, extra),
        grow=v._define("S S a a", grow, extra),
        weigh=v._define("S S a a a", weigh, extra),
        keep=v._define("- S a a", keep, extra),
    )
