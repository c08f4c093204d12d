"""Vectors of sixteen 32-bit lanes for numba, on plain addresses, because LLVM does not vectorize the kernels' loops.

A kernel is a function of integers: addresses and counts. Every operation here is an LLVM instruction or intrinsic on
``<16 x i32>`` or ``<16 x float>``, which LLVM splits for narrower registers. Only the dot product of bytes depends on
the instruction set: it is a call, which ``isa`` defines when a kernel is compiled.

``vector_rows`` has operations on several vectors in registers, one or more per row of activations. With
``NUMBA_DISABLE_JIT=1`` the same names are NumPy functions on the same addresses, for stepping through a kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from edgecompress_kernels.cpu import vector_numpy

LANES = 16
BYTES = 64  # per vector
# (i32x16, weights 8x64, activations 8x64) -> i32x16, defined in dots.py for each instruction set
DOT, DOT_SMALL, DOT_SIGNED = "edgecompress_dot", "edgecompress_dot_small", "edgecompress_dot_signed"
DOT_NARROW = "edgecompress_dot_narrow"
JIT = not numba.config.DISABLE_JIT
I8, I32, I64, VOID = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.VoidType()
F16, F32 = ir.HalfType(), ir.FloatType()
I32X16, F32X16, U8X64 = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES), ir.VectorType(I8, BYTES)
_ALIGN = ir.Constant(I32, 4)


class Lanes(types.Type):
    """``<16 x i32>`` or ``<16 x float>``."""

    def __init__(self, element: str) -> None:
        self.llvm = {"i32": I32X16, "f32": F32X16}[element]
        super().__init__(name=f"{element}x{LANES}")


class Rows(types.Type):
    """``count`` vectors of one kind."""

    def __init__(self, lanes: Lanes, count: int) -> None:
        self.count, self.llvm = count, ir.ArrayType(lanes.llvm, count)
        super().__init__(name=f"{lanes.name}x{count}")


@register_model(Lanes)
@register_model(Rows)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.llvm)


INTS, FLOATS = Lanes("i32"), Lanes("f32")
_KINDS = {"a": types.int64, "i": types.int32, "f": types.float32, "I": INTS, "F": FLOATS, "-": types.void}
if JIT:
    # Numba links compiled code immediately, but the dot product is defined only when the kernel is compiled for a CPU.
    for _name in (DOT, DOT_SMALL, DOT_SIGNED, DOT_NARROW):
        binding.add_symbol(_name, 1)


def _define(kinds: str, emit: Callable[..., Any], extra: dict[str, Any] | None = None, name: str = "") -> Any:
    """Make an intrinsic of ``emit(builder, *values)``. ``kinds`` is "result arguments" in the letters of ``_KINDS``."""
    if not JIT:
        return getattr(vector_numpy, name or emit.__name__)
    known = _KINDS | (extra or {})
    result, *arguments = (known[k] for k in kinds.replace(" ", ""))
    signature = result(*arguments)

    def typed(_typing: Any, *_arguments: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            found = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else found

        return signature, generate

    names = ["typing", *(f"x{i}" for i in range(len(arguments)))]
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__name__ = name or emit.__name__
    return intrinsic(typed)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    function = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), values)


def _const(value: int) -> Any:
    return ir.Constant(I32X16, [value] * LANES)


def _dot(builder: Any, name: str, sums: Any, weights: Any, signed: Any) -> Any:
    return _call(builder, name, I32X16, sums, builder.bitcast(weights, U8X64), builder.bitcast(signed, U8X64))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", F32X16, a, b, c)


def _lanewise(name: str) -> Any:
    def reduce(builder: Any, value: Any) -> Any:
        """Reduce by halves: a fixed order, so that sums are the same on every CPU."""
        for half in (8, 4, 2, 1):
            mask = ir.Constant(ir.VectorType(I32, LANES), [(i + half) % LANES for i in range(LANES)])
            other = builder.shuffle_vector(value, ir.Constant(F32X16, ir.Undefined), mask)
            value = (
                builder.fadd(value, other)
                if name == "sum"
                else _call(builder, f"llvm.{name}.v16f32", F32X16, value, other)
            )
        return builder.extract_element(value, ir.Constant(I32, 0))

    return reduce


def _load(kind: Any, align: int) -> Any:
    return lambda b, address: b.load(_at(b, address, kind), align=align)


def _store(kind: Any, align: int) -> Any:
    return lambda b, address, value: b.store(value, _at(b, address, kind), align=align) and None


def _prefetch(builder: Any, address: Any) -> None:
    hints = (ir.Constant(I32, x) for x in (0, 3, 1))  # for reading, into all caches, data
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), _at(builder, address, I8), *hints)


def _halves(builder: Any, address: Any) -> Any:
    return builder.fpext(builder.load(_at(builder, address, ir.VectorType(F16, LANES)), align=2), F32X16)


def _load_bytes(builder: Any, address: Any) -> Any:
    """Load sixteen unsigned bytes as ints."""
    return builder.zext(builder.load(_at(builder, address, ir.VectorType(I8, LANES)), align=1), I32X16)


def _first(builder: Any, wanted: Any) -> Any:
    """A mask of the first ``wanted`` lanes."""
    count = builder.trunc(wanted, I32)
    return builder.icmp_signed("<", ir.Constant(I32X16, list(range(LANES))), _splat(builder, count, I32X16))


def _load_part(builder: Any, address: Any, wanted: Any) -> Any:
    none = ir.Constant(F32X16, [0.0] * LANES)
    where = _at(builder, address, F32X16)
    return _call(builder, "llvm.masked.load.v16f32.p0", F32X16, where, _ALIGN, _first(builder, wanted), none)


def _store_part(builder: Any, address: Any, value: Any, wanted: Any) -> None:
    where, mask = _at(builder, address, F32X16), _first(builder, wanted)
    _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, where, _ALIGN, mask)


def _round(builder: Any, value: Any) -> Any:
    return builder.fptosi(_call(builder, "llvm.rint.v16f32", F32X16, value), I32X16)


def _store_bytes(builder: Any, address: Any, value: Any) -> None:
    narrow = ir.VectorType(I8, LANES)
    builder.store(builder.trunc(value, narrow), _at(builder, address, narrow), align=1)


def _exponential(builder: Any, x: Any) -> Any:
    """exp of x <= 0 within 2 ulp; 0 below -87, where float32 underflows.

    2^n times a Taylor polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2], whose remainder is below 2^-24.
    """

    def lanes(value: float) -> Any:
        return ir.Constant(F32X16, [value] * LANES)

    small = builder.fcmp_ordered("<", x, lanes(-87.0))
    x = builder.select(small, lanes(0.0), x)
    n = _call(builder, "llvm.rint.v16f32", F32X16, builder.fmul(x, lanes(1.4426950408889634)))
    r = _fma(builder, n, lanes(-0.693359375), x)
    r = _fma(builder, n, lanes(2.1219444005469057e-4), r)
    y = lanes(1 / 720)
    for k in (120, 24, 6, 2, 1, 1):
        y = _fma(builder, y, r, lanes(1 / k))
    power = builder.shl(builder.add(builder.fptosi(n, I32X16), _const(127)), _const(23))
    return builder.select(small, lanes(0.0), builder.fmul(y, builder.bitcast(power, F32X16)))


def _between(builder: Any, values: Any, index: Any, first: Any, last: Any) -> Any:
    """Keep lanes whose number, counted from ``index``, is in [first, last]; the others become -inf."""
    numbers = builder.add(ir.Constant(I32X16, list(range(LANES))), _splat(builder, builder.trunc(index, I32), I32X16))
    low = builder.icmp_signed(">=", numbers, _splat(builder, builder.trunc(first, I32), I32X16))
    high = builder.icmp_signed("<=", numbers, _splat(builder, builder.trunc(last, I32), I32X16))
    none = ir.Constant(F32X16, [float("-inf")] * LANES)
    return builder.select(builder.and_(low, high), values, none)


def _transpose_and_add(builder: Any, vectors: list[Any], width: int) -> Any:
    """Add pairs of ``vectors`` until one is left: with sixteen of width 1, lane i is the sum of the lanes of vector i.

    A vector of ``width`` w already combines w vectors: each group of w lanes has one lane of each.
    """
    while len(vectors) > 1:
        masks = ([], [])  # type: tuple[list[int], list[int]]
        for lane in range(LANES):
            # lanes in groups of 2 width: the first half goes to one vector, the second half to the other
            group, at = lane // (2 * width), lane % (2 * width)
            source, within = divmod(at, width)
            base = source * LANES + group * 2 * width + within
            masks[0].append(base)
            masks[1].append(base + width)
        half = len(vectors) // 2
        joined = []
        for i in range(half):
            pair = vectors[2 * i], vectors[2 * i + 1]
            parts = [builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, LANES), mask)) for mask in masks]
            joined.append(builder.fadd(*parts))
        vectors, width = joined, 2 * width
    return vectors[0]


def stack(size: int) -> Any:
    """An operation that returns the address of ``size`` uninitialized bytes on the kernel's stack."""
    if not JIT:
        return vector_numpy.stack(size)

    def emit(builder: Any) -> Any:
        with builder.goto_entry_block():  # numba's helper would zero all of it at every call
            place = builder.alloca(ir.ArrayType(I8, size))
        place.align = BYTES
        return builder.ptrtoint(place, I64)

    return _define("a", emit, name="stack")


def sixteen_dots(size: int, together: int) -> Any:
    """An operation (q, keys, stride, last) -> dot products of float32 [size] at q with sixteen rows at ``keys``.

    Rows past ``last`` do not exist; row ``last`` is read instead. ``together`` (a power of two) rows are in registers
    at a time; the result does not depend on it.
    """
    if not JIT:
        return vector_numpy.sixteen_dots(size, together)

    def emit(builder: Any, q: Any, keys: Any, stride: Any, last: Any) -> Any:
        places = []
        for i in range(LANES):
            number = ir.Constant(I64, i)
            inside = builder.icmp_signed("<", number, last)
            places.append(builder.add(keys, builder.mul(builder.select(inside, number, last), stride)))
        found = []
        for first in range(0, LANES, together):
            sums = [ir.Constant(F32X16, [0.0] * LANES)] * together
            for at in range(0, 4 * size, BYTES):
                offset = ir.Constant(I64, at)
                left = builder.load(_at(builder, builder.add(q, offset), F32X16), align=4)
                for i in range(together):
                    right = builder.load(_at(builder, builder.add(places[first + i], offset), F32X16), align=4)
                    sums[i] = _fma(builder, left, right, sums[i])
            found.append(_transpose_and_add(builder, sums, 1))
            if together < LANES:
                # Keeps loads in place: otherwise LLVM hoists the loads of all rows and spills them.
                barrier = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
                builder.call(barrier, [])
        return _transpose_and_add(builder, found, together)

    return _define("F a a a a", emit, name="sixteen_dots")


def _sum_ints(builder: Any, value: Any) -> Any:
    return _call(builder, "llvm.vector.reduce.add.v16i32", I32, value)


read_address = _define("a a", _load(I64, 8), name="read_address")
read_float = _define("f a", _load(F32, 4), name="read_float")
write_int = _define("- a i", _store(I32, 4), name="write_int")
write_float = _define("- a f", _store(F32, 4), name="write_float")
load_ints = _define("I a", _load(I32X16, 4), name="load_ints")
load_floats = _define("F a", _load(F32X16, 4), name="load_floats")
load_halves = _define("F a", _halves, name="load_halves")
load_bytes = _define("I a", _load_bytes, name="load_bytes")
load_bytes_less_128 = _define("I a", lambda b, a: b.sub(_load_bytes(b, a), _const(128)), name="load_bytes_less_128")
load_part = _define("F a a", _load_part, name="load_part")
store_floats = _define("- a F", _store(F32X16, 4), name="store_floats")
store_bytes = _define("- a I", _store_bytes, name="store_bytes")
prefetch = _define("- a", _prefetch, name="prefetch")
splat_float = _define("F f", lambda b, x: _splat(b, x, F32X16), name="splat_float")
low_nibbles = _define("I I", lambda b, x: b.and_(x, _const(0x0F0F0F0F)), name="low_nibbles")
less_128 = _define("I I", lambda b, x: b.xor(x, _const(-0x7F7F7F80)), name="less_128")
high_nibbles = _define("I I", lambda b, x: b.and_(b.lshr(x, _const(4)), _const(0x0F0F0F0F)), name="high_nibbles")
round_to_ints = _define("I F", _round, name="round_to_ints")
add_floats = _define("F F F", lambda b, x, y: b.fadd(x, y), name="add_floats")
multiply = _define("F F F", lambda b, x, y: b.fmul(x, y), name="multiply")
fused_multiply_add = _define("F F F F", _fma, name="fused_multiply_add")
maximum = _define("F F F", lambda b, x, y: _call(b, "llvm.maximum.v16f32", F32X16, x, y), name="maximum")
absolute = _define("F F", lambda b, x: _call(b, "llvm.fabs.v16f32", F32X16, x), name="absolute")
largest_lane = _define("f F", _lanewise("maximum"), name="largest_lane")
first_lane = _define("f F", lambda b, x: b.extract_element(x, ir.Constant(I32, 0)), name="first_lane")
sum_lanes = _define("f F", _lanewise("sum"), name="sum_lanes")
subtract = _define("F F F", lambda b, x, y: b.fsub(x, y), name="subtract")
exponential = _define("F F", _exponential, name="exponential")
between = _define("F F a a a", _between, name="between")
sum_int_lanes = _define("i I", _sum_ints, name="sum_int_lanes")
