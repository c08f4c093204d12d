"""Vector operations for the encoder's kernels: tiles of rows by outputs in registers, GELU, exp, byte packing.

As in ``vector``, every operation is LLVM on ``<16 x i32>`` or ``<16 x float>``, and with ``NUMBA_DISABLE_JIT=1`` the
same names are NumPy functions on the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from edgecompress_kernels.cpu import encoder_numpy
from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.vector import BYTES, F32, F32X16, FLOATS, I32, I32X16, I64, INTS, LANES, Rows

# erf(x / sqrt 2) = x P(x^2) on [-4.5, 4.5], minimax in GELU's error; x is clamped to that range. In float32, GELU's
# error is at most 2e-5 + 1e-5 |x|, while quantizing an activation costs up to 1/500 of its row's range.
GELU_END = 4.5
GELU_TERMS = (
    7.97672620e-01, -1.32509942e-01, 1.95658001e-02, -2.21485448e-03, 1.90431717e-04, -1.21641328e-05, 5.54148225e-07,
    -1.68676060e-08, 3.05298796e-10, -2.47226807e-12,
)  # fmt: skip
# exp(r) on [-ln 2 / 2, ln 2 / 2], Taylor polynomial of degree 5: relative error 2.5e-6, far below that of 8 bits.
EXP_TERMS = (1.0, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120)
EXP_LEAST = -87.0


def _define(kinds: str, emit: Callable[..., Any], name: str, extra: dict[str, Any] | None = None) -> Any:
    return v._define(kinds, emit, extra, name=name) if v.JIT else getattr(encoder_numpy, name)


def _lanes(value: float) -> Any:
    return ir.Constant(F32X16, [value] * LANES)


def _greater(builder: Any, a: Any, b: Any) -> Any:
    """Maximum in one instruction, unlike ``llvm.maximum``; returns the other operand for a NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _lesser(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _across(pick: Callable[..., Any]) -> Any:
    def reduce(builder: Any, value: Any) -> Any:
        for half in (8, 4, 2, 1):
            mask = ir.Constant(ir.VectorType(I32, LANES), [(i + half) % LANES for i in range(LANES)])
            value = pick(builder, value, builder.shuffle_vector(value, ir.Constant(F32X16, ir.Undefined), mask))
        return builder.extract_element(value, ir.Constant(I32, 0))

    return reduce


def _series(builder: Any, terms: tuple[float, ...], x: Any) -> Any:
    found = _lanes(terms[-1])
    for term in terms[-2::-1]:
        found = v._fma(builder, found, x, _lanes(term))
    return found


def _gelu(builder: Any, x: Any) -> Any:
    near = _lesser(builder, _greater(builder, x, _lanes(-GELU_END)), _lanes(GELU_END))
    error_function = builder.fmul(near, _series(builder, GELU_TERMS, builder.fmul(near, near)))
    half = builder.fmul(x, _lanes(0.5))
    return v._fma(builder, half, error_function, half)


def _power(builder: Any, x: Any) -> Any:
    """exp of x <= 0; x below -87 is clamped to -87, where exp is practically 0."""
    x = _greater(builder, x, _lanes(EXP_LEAST))
    n = v._call(builder, "llvm.rint.v16f32", F32X16, builder.fmul(x, _lanes(1.4426950408889634)))
    y = _series(builder, EXP_TERMS, v._fma(builder, n, _lanes(-0.6931471805599453), x))
    power = builder.shl(builder.add(builder.fptosi(n, I32X16), v._const(127)), v._const(23))
    return builder.fmul(y, builder.bitcast(power, F32X16))


def _sigmoid(builder: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), computed with exp of -|x|."""
    one = _lanes(1.0)
    small = v._exponential(builder, builder.fsub(_lanes(0.0), v._call(builder, "llvm.fabs.v16f32", F32X16, x)))
    above = builder.select(builder.fcmp_ordered("<", x, _lanes(0.0)), small, one)
    return builder.fdiv(above, builder.fadd(one, small))


def _root(builder: Any, x: Any) -> Any:
    one = ir.Constant(F32, 1.0)
    return builder.fdiv(one, v._call(builder, "llvm.sqrt.f32", F32, x))


def _interleave(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Combine the low bytes of four vectors to the four bytes of each lane."""
    parts = [builder.and_(x, v._const(255)) for x in (a, b, c, d)]
    for i in (1, 2, 3):
        parts[0] = builder.or_(parts[0], builder.shl(parts[i], v._const(8 * i)))
    return parts[0]


def _copy_biased(builder: Any, to: Any, source: Any) -> None:
    """Copy four signed bytes as unsigned bytes with zero 128."""
    found = builder.load(v._at(builder, source, I32), align=1)
    builder.store(builder.xor(found, ir.Constant(I32, 0x80808080)), v._at(builder, to, I32), align=1)


greater = _define("F F F", _greater, "greater")
lesser = _define("F F F", _lesser, "lesser")
greatest_lane = _define("f F", _across(_greater), "greatest_lane")
least_lane = _define("f F", _across(_lesser), "least_lane")
power = _define("F F", _power, "power")
gelu = _define("F F", _gelu, "gelu")
sigmoid = _define("F F", _sigmoid, "sigmoid")
reciprocal_root = _define("f f", _root, "reciprocal_root")
interleave = _define("I I I I I", _interleave, "interleave")
add_ints = _define("I I I", lambda b, x, y: b.add(x, y), "add_ints")
zero_ints = _define("I", lambda b: v._const(0), "zero_ints")
copy_biased = _define("- a a", _copy_biased, "copy_biased")
read_int = _define("i a", v._load(I32, 4), "read_int")
store_ints = _define("- a I", v._store(I32X16, 4), "store_ints")


def tile(count: int, width: int) -> SimpleNamespace:
    """Operations on ``count`` rows by ``width`` vectors. Values of consecutive rows are ``stride`` bytes apart.

    zeros()                                  ints
    start(address, stride)                   ints: the int32 of each row, in all lanes
    dot(ints, weights, step, x, stride)      + four unsigned bytes of each row times signed weights; vectors of weights
                                             are ``step`` bytes apart
    dot_narrow(...)                          the same, for weights from -63 to 63
    dot_signed(ints, keys, step, q, stride)  + four signed bytes of each row times unsigned keys
    finish(ints, columns, step, x_scales, x_lows)  floats: ints * scale * x_scale + x_low * offset + bias; ``columns``
                                             has the tile's scales, then offsets, then biases, float32, ``step`` bytes
                                             apart
    weigh(ints, scales, step, x_scales, stride, index, first, last)  floats: ints * scales * x_scale, -inf for lanes
                                             whose number, counted from ``index``, is not in [first, last]
    grow(floats, ints, factor)               floats + ints * factor
    load(address, stride), keep(floats, address, stride); read(address, stride): like ``load``, but ints
    """
    if not v.JIT:
        made: SimpleNamespace = encoder_numpy.tile(count, width)
        return made
    ints, floats = Rows(INTS, count * width), Rows(FLOATS, count * width)
    extra = {"R": ints, "S": floats}
    places = [(r, c) for r in range(count) for c in range(width)]

    def fill(builder: Any, kind: Any, of_place: Callable[[int, int], Any]) -> Any:
        made = ir.Constant(kind.llvm, ir.Undefined)
        for r, c in places:
            made = builder.insert_value(made, of_place(r, c), r * width + c)
        return made

    def at(b: Any, address: Any, stride: Any, row: int, column: int = 0) -> Any:
        return b.add(b.add(address, b.mul(stride, ir.Constant(I64, row))), ir.Constant(I64, BYTES * column))

    def value(b: Any, address: Any, stride: Any, row: int, kind: Any) -> Any:
        found = b.load(v._at(b, at(b, address, stride, row), kind), align=1)
        return v._splat(b, found, ir.VectorType(kind, LANES))

    def one(b: Any, found: Any, r: int, c: int) -> Any:
        return b.extract_value(found, r * width + c)

    def zeros(b: Any) -> Any:
        return fill(b, ints, lambda r, c: v._const(0))

    def start(b: Any, address: Any, stride: Any) -> Any:
        lanes = [value(b, address, stride, r, I32) for r in range(count)]
        return fill(b, ints, lambda r, c: lanes[r])

    def product(
        b: Any, name: str, sums: Any, weights: Any, step: Any, x: Any, stride: Any, *, rows_signed: bool
    ) -> Any:
        side = [
            b.load(v._at(b, b.add(weights, b.mul(step, ir.Constant(I64, c))), I32X16), align=1) for c in range(width)
        ]
        found = []
        for r in range(count):
            row = value(b, x, stride, r, I32)
            for c in range(width):
                pair = (side[c], row) if rows_signed else (row, side[c])
                found.append(v._dot(b, name, one(b, sums, r, c), *pair))
        return fill(b, ints, lambda r, c: found[r * width + c])

    def finish(b: Any, found: Any, columns: Any, step: Any, x_scales: Any, x_lows: Any) -> Any:
        four = ir.Constant(I64, 4)
        kinds = [(kind, c) for kind in range(3) for c in range(width)]
        loads = [b.load(v._at(b, at(b, columns, step, kind, c), F32X16), align=1) for kind, c in kinds]
        made = []
        for r in range(count):
            scale, low = value(b, x_scales, four, r, F32), value(b, x_lows, four, r, F32)
            for c in range(width):
                fixed = v._fma(b, low, loads[width + c], loads[2 * width + c])
                made.append(v._fma(b, b.sitofp(one(b, found, r, c), F32X16), b.fmul(scale, loads[c]), fixed))
        return fill(b, floats, lambda r, c: made[r * width + c])

    def weigh(
        b: Any, found: Any, scales: Any, step: Any, x_scales: Any, stride: Any, index: Any, first: Any, last: Any
    ) -> Any:
        columns = []
        for c in range(width):
            lanes = b.load(v._at(b, b.add(scales, b.mul(step, ir.Constant(I64, c))), F32X16), align=4)
            mask = v._between(b, _lanes(0.0), b.add(index, ir.Constant(I64, LANES * c)), first, last)
            columns.append((lanes, mask))
        factors = [value(b, x_scales, stride, r, F32) for r in range(count)]

        def of_place(r: int, c: int) -> Any:
            lanes, mask = columns[c]
            return v._fma(b, b.sitofp(one(b, found, r, c), F32X16), b.fmul(lanes, factors[r]), mask)

        return fill(b, floats, of_place)

    def grow(b: Any, sums: Any, found: Any, factor: Any) -> Any:
        lanes = v._splat(b, factor, F32X16)
        return fill(b, floats, lambda r, c: v._fma(b, b.sitofp(one(b, found, r, c), F32X16), lanes, one(b, sums, r, c)))

    def load(b: Any, address: Any, stride: Any) -> Any:
        return fill(b, floats, lambda r, c: b.load(v._at(b, at(b, address, stride, r, c), F32X16), align=1))

    def read(b: Any, address: Any, stride: Any) -> Any:
        return fill(b, ints, lambda r, c: b.load(v._at(b, at(b, address, stride, r, c), I32X16), align=1))

    def keep(b: Any, sums: Any, address: Any, stride: Any) -> None:
        for r, c in places:
            b.store(one(b, sums, r, c), v._at(b, at(b, address, stride, r, c), F32X16), align=4)

    def dot(name: str, *, rows_signed: bool = False) -> Any:
        return lambda b, *a: product(b, name, *a, rows_signed=rows_signed)

    kinds: dict[str, tuple[str, Callable[..., Any]]] = {
        "zeros": ("R", zeros), "start": ("R a a", start), "dot": ("R R a a a a", dot(v.DOT)),
        "dot_narrow": ("R R a a a a", dot(v.DOT_NARROW)),
        "dot_signed": ("R R a a a a", dot(v.DOT, rows_signed=True)), "finish": ("S R a a a a", finish),
        "weigh": ("S R a a a a a a a", weigh), "grow": ("S S R f", grow),
        "load": ("S a a", load), "read": ("R a a", read), "keep": ("- S a a", keep),
    }  # fmt: skip
    return SimpleNamespace(**{name: v._define(kind, emit, extra, name=name) for name, (kind, emit) in kinds.items()})
