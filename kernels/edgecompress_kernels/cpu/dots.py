"""Dot products of bytes in LLVM IR, with each instruction set's own instructions. All are exact.

A vector has sixteen lanes of four bytes; each lane's four products are added to its sum::

    edgecompress_dot          weights 0 to 255
    edgecompress_dot_small    weights 0 to 127
    edgecompress_dot_narrow   weights 0 to 255, activations -63 to 63
    edgecompress_dot_signed   weights -128 to 127; on CPUs with a dot product of signed bytes

Activations are -127 to 127 in the others, but 16 bits in::

    edgecompress_dot_wide     weights -128 to 127, activations -32767 to 32767: the first and third of each lane in one
                              vector, the second and fourth in another

It widens weights by shifts, and every instruction set can add pairs of 16-bit products in 32 bits. In AVX2 that takes
as many instructions as a product of signed bytes, and keeps 16-bit activations.
"""

from __future__ import annotations

from collections.abc import Iterable


def _function(kind: str, lines: Iterable[str]) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    parameters = "<16 x i32> %sums, <64 x i8> %w, <64 x i8> %x"
    head = f"define <16 x i32> @edgecompress_{kind}({parameters}) alwaysinline nounwind"
    return f"{head} {{\n{body}  ret <16 x i32> %r\n}}\n"


def _in_parts(kind: str, parts: int, part: str) -> str:
    """Apply ``part``, a function on narrower vectors, to each of ``parts`` pieces."""
    lanes = 16 // parts
    narrow, few = f"<{4 * lanes} x i8>", f"<{lanes} x i32>"
    cut = f"llvm.vector.extract.v{4 * lanes}i8.v64i8"
    cut_sums, put = f"llvm.vector.extract.v{lanes}i32.v16i32", f"llvm.vector.insert.v16i32.v{lanes}i32"
    lines, whole = [], "poison"
    for i in range(parts):
        lines += [
            f"%w{i} = call {narrow} @{cut}(<64 x i8> %w, i64 {4 * lanes * i})",
            f"%x{i} = call {narrow} @{cut}(<64 x i8> %x, i64 {4 * lanes * i})",
            f"%s{i} = call {few} @{cut_sums}(<16 x i32> %sums, i64 {lanes * i})",
            f"%d{i} = call {few} @{part}({few} %s{i}, {narrow} %w{i}, {narrow} %x{i})",
        ]
        made = "%r" if i == parts - 1 else f"%r{i}"
        lines.append(f"{made} = call <16 x i32> @{put}(<16 x i32> {whole}, {few} %d{i}, i64 {lanes * i})")
        whole = made
    return _function(kind, lines)


def _declared(parts: int) -> str:
    lanes = 16 // parts
    return (
        f"declare <{4 * lanes} x i8> @llvm.vector.extract.v{4 * lanes}i8.v64i8(<64 x i8>, i64)\n"
        f"declare <{lanes} x i32> @llvm.vector.extract.v{lanes}i32.v16i32(<16 x i32>, i64)\n"
        f"declare <16 x i32> @llvm.vector.insert.v16i32.v{lanes}i32(<16 x i32>, <{lanes} x i32>, i64)\n"
    )


def _wide(parts: int, pairs: str) -> str:
    """The 16-bit product: apply ``pairs``, a function on narrower vectors, to each of ``parts`` pieces."""
    lanes = 16 // parts
    narrow, few = f"<{2 * lanes} x i16>", f"<{lanes} x i32>"
    cut, cut_sums = f"llvm.vector.extract.v{2 * lanes}i16.v32i16", f"llvm.vector.extract.v{lanes}i32.v16i32"
    put = f"llvm.vector.insert.v16i32.v{lanes}i32"
    lines = [
        "%halves = bitcast <64 x i8> %w to <32 x i16>",
        "%raised = shl <32 x i16> %halves, splat (i16 8)",
        "%w0 = ashr <32 x i16> %raised, splat (i16 8)",
        "%w1 = ashr <32 x i16> %halves, splat (i16 8)",
    ]
    lines += [f"%x{k} = bitcast <16 x i32> %{name} to <32 x i16>" for k, name in enumerate(("even", "odd"))]
    if parts == 1:
        for k, (before, after) in enumerate((("sums", "half"), ("half", "r"))):
            operands = f"<16 x i32> %{before}, <32 x i16> %w{k}, <32 x i16> %x{k}"
            lines.append(f"%{after} = call <16 x i32> @{pairs}({operands})")
        parts = 0
    whole = "poison"
    for i in range(parts):
        lines.append(f"%s0_{i} = call {few} @{cut_sums}(<16 x i32> %sums, i64 {lanes * i})")
        for k in (0, 1):
            for side in "wx":
                lines.append(f"%{side}{k}_{i} = call {narrow} @{cut}(<32 x i16> %{side}{k}, i64 {2 * lanes * i})")
            operands = f"{few} %s{k}_{i}, {narrow} %w{k}_{i}, {narrow} %x{k}_{i}"
            lines.append(f"%s{k + 1}_{i} = call {few} @{pairs}({operands})")
        made = "%r" if i == parts - 1 else f"%r{i}"
        lines.append(f"{made} = call <16 x i32> @{put}(<16 x i32> {whole}, {few} %s2_{i}, i64 {lanes * i})")
        whole = made
    parameters = "<16 x i32> %sums, <64 x i8> %w, <16 x i32> %even, <16 x i32> %odd"
    head = f"define <16 x i32> @edgecompress_dot_wide({parameters}) alwaysinline nounwind"
    body = "".join(f"  {line}\n" for line in lines)
    declared = f"declare {narrow} @{cut}(<32 x i16>, i64)\n" if parts else ""
    return f"{declared}{head} {{\n{body}  ret <16 x i32> %r\n}}\n"


_VPDPBUSD, _VPDPWSSD = "llvm.x86.avx512.vpdpbusd.512", "llvm.x86.avx512.vpdpwssd.512"
VNNI = (
    f"declare <16 x i32> @{_VPDPBUSD}(<16 x i32>, <64 x i8>, <64 x i8>)\n"
    + f"declare <16 x i32> @{_VPDPWSSD}(<16 x i32>, <32 x i16>, <32 x i16>)\n"
    + "".join(
        _function(kind, [f"%r = call <16 x i32> @{_VPDPBUSD}(<16 x i32> %sums, <64 x i8> %w, <64 x i8> %x)"])
        for kind in ("dot", "dot_small", "dot_narrow")
    )
    + _wide(1, _VPDPWSSD)
)

# VPMADDUBSW adds two products in 16 bits and saturates; two products of 127 x 127 or 255 x 63 fit. For larger ones,
# even and then odd bytes of both sides are widened to 16 bits for VPMADDWD, once for all products of a side.
AVX2 = (
    _declared(2)
    + """
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
define <8 x i32> @edgecompress_small(<8 x i32> %s, <32 x i8> %w, <32 x i8> %x) alwaysinline nounwind {
  %pairs = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %w, <32 x i8> %x)
  %fours = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %pairs, <16 x i16> splat (i16 1))
  %r = add <8 x i32> %s, %fours
  ret <8 x i32> %r
}
define <8 x i32> @edgecompress_large(<8 x i32> %s, <32 x i8> %w, <32 x i8> %x) alwaysinline nounwind {
  %w2 = bitcast <32 x i8> %w to <16 x i16>
  %x2 = bitcast <32 x i8> %x to <16 x i16>
  %w_even = and <16 x i16> %w2, splat (i16 255)
  %w_odd = lshr <16 x i16> %w2, splat (i16 8)
  %x_high = shl <16 x i16> %x2, splat (i16 8)
  %x_even = ashr <16 x i16> %x_high, splat (i16 8)
  %x_odd = ashr <16 x i16> %x2, splat (i16 8)
  %even = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %w_even, <16 x i16> %x_even)
  %odd = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %w_odd, <16 x i16> %x_odd)
  %half = add <8 x i32> %s, %even
  %r = add <8 x i32> %half, %odd
  ret <8 x i32> %r
}
"""
    + _in_parts("dot", 2, "edgecompress_large")
    + _in_parts("dot_small", 2, "edgecompress_small")
    + _in_parts("dot_narrow", 2, "edgecompress_small")
    + """
define <8 x i32> @edgecompress_pairs(<8 x i32> %s, <16 x i16> %w, <16 x i16> %x) alwaysinline nounwind {
  %found = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %w, <16 x i16> %x)
  %r = add <8 x i32> %s, %found
  ret <8 x i32> %r
}
"""
    + _wide(2, "edgecompress_pairs")
)

# Weights of 0 to 255 with a signed dot product: the low seven bits, plus 128 times the highest bit.
_BY_BITS = """
define <16 x i32> @edgecompress_dot(<16 x i32> %sums, <64 x i8> %w, <64 x i8> %x) alwaysinline nounwind {
  %low = and <64 x i8> %w, splat (i8 127)
  %high = lshr <64 x i8> %w, splat (i8 7)
  %one = call <16 x i32> @edgecompress_dot_signed(<16 x i32> %sums, <64 x i8> %low, <64 x i8> %x)
  %two = call <16 x i32> @edgecompress_dot_signed(<16 x i32> zeroinitializer, <64 x i8> %high, <64 x i8> %x)
  %more = shl <16 x i32> %two, splat (i32 7)
  %r = add <16 x i32> %one, %more
  ret <16 x i32> %r
}
define <16 x i32> @edgecompress_dot_narrow(<16 x i32> %sums, <64 x i8> %w, <64 x i8> %x) alwaysinline nounwind {
  %r = call <16 x i32> @edgecompress_dot(<16 x i32> %sums, <64 x i8> %w, <64 x i8> %x)
  ret <16 x i32> %r
}
"""
_WIDE = """
declare <4 x i32> @llvm.aarch64.neon.smull.v4i32(<4 x i16>, <4 x i16>)
declare <4 x i32> @llvm.aarch64.neon.addp.v4i32(<4 x i32>, <4 x i32>)
define <4 x i32> @edgecompress_pairs(<4 x i32> %s, <8 x i16> %w, <8 x i16> %x) alwaysinline nounwind {
  %w0 = shufflevector <8 x i16> %w, <8 x i16> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %x0 = shufflevector <8 x i16> %x, <8 x i16> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %w1 = shufflevector <8 x i16> %w, <8 x i16> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %x1 = shufflevector <8 x i16> %x, <8 x i16> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %p0 = call <4 x i32> @llvm.aarch64.neon.smull.v4i32(<4 x i16> %w0, <4 x i16> %x0)
  %p1 = call <4 x i32> @llvm.aarch64.neon.smull.v4i32(<4 x i16> %w1, <4 x i16> %x1)
  %pairs = call <4 x i32> @llvm.aarch64.neon.addp.v4i32(<4 x i32> %p0, <4 x i32> %p1)
  %r = add <4 x i32> %s, %pairs
  ret <4 x i32> %r
}
""" + _wide(4, "edgecompress_pairs")
_SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
NEON_DOT = (
    _declared(4)
    + f"declare <4 x i32> @{_SDOT}(<4 x i32>, <16 x i8>, <16 x i8>)\n"
    + _in_parts("dot_signed", 4, _SDOT)
    + _in_parts("dot_small", 4, _SDOT)
    + _BY_BITS
    + _WIDE
)

# 16-bit products, added in pairs: 2 x -128 x 127 fits. Pairs are added to the sums in 32 bits.
NEON = (
    _declared(4)
    + """
declare <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8>, <8 x i8>)
declare <8 x i16> @llvm.aarch64.neon.addp.v8i16(<8 x i16>, <8 x i16>)
declare <4 x i32> @llvm.aarch64.neon.saddlp.v4i32.v8i16(<8 x i16>)
define <4 x i32> @edgecompress_widening(<4 x i32> %s, <16 x i8> %w, <16 x i8> %x) alwaysinline nounwind {
  %w0 = shufflevector <16 x i8> %w, <16 x i8> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %x0 = shufflevector <16 x i8> %x, <16 x i8> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %w1 = shufflevector <16 x i8> %w, <16 x i8> poison,
    <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %x1 = shufflevector <16 x i8> %x, <16 x i8> poison,
    <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %p0 = call <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8> %w0, <8 x i8> %x0)
  %p1 = call <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8> %w1, <8 x i8> %x1)
  %pairs = call <8 x i16> @llvm.aarch64.neon.addp.v8i16(<8 x i16> %p0, <8 x i16> %p1)
  %fours = call <4 x i32> @llvm.aarch64.neon.saddlp.v4i32.v8i16(<8 x i16> %pairs)
  %r = add <4 x i32> %s, %fours
  ret <4 x i32> %r
}
"""
    + _in_parts("dot_signed", 4, "edgecompress_widening")
    + _in_parts("dot_small", 4, "edgecompress_widening")
    + _BY_BITS
    + _WIDE
)
