"""Weights in blocks that share one scale, in the layout of com.microsoft::MatMulNBits.

Round to nearest and the half-quadratic solver look at the weight alone and live here; GPTQ, which also looks at the
activations, is in :mod:`edgecompress.quantize.gptq`. All of it is NumPy in float32. Work is done in slices of output
columns, so the memory beyond the weight and the result is a few megabytes, and a vocabulary of 150,000 is no exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecompress.formats.cpu import host_cores
from edgecompress.quantize.numerics import Float

Codes = npt.NDArray[np.uint8]

_SLICE_ELEMENTS = 1 << 18  # a megabyte of float32: the temporaries of a slice stay in the cache
_FEWEST_COLUMNS = 64  # of a slice: reading fewer neighbours of a [K, N] matrix wastes its cache lines

# How much further than its extreme value a block's range reaches, as a factor on the inverse scale: above 1 clips.
_REACH_4 = (1.0, 0.875, 0.92, 0.96, 1.04, 1.09, 1.15, 1.22, 1.31, 1.42)
_REACH_8 = (1.0,)  # 256 levels are so fine that clipping never pays

_HALF = np.finfo(np.float16)

_LP_NORM = 0.7  # of the half-quadratic solver, with its authors' other settings
_BETA, _KAPPA = 10.0, 1.01
_ITERATIONS = 20


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How a weight is stored: 4 or 8 bits, blocks of that many inputs, a zero point of its own or the middle."""

    bits: int
    block_size: int
    symmetric: bool = True
    positive: bool = False  # of symmetric ones: no scale is below zero

    @property
    def top(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point where none is stored."""
        return int(2 ** (self.bits - 1))

    def blocks(self, width: int) -> int:
        return -(-width // self.block_size)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A weight [K, N] of ``y = x @ weight`` as MatMulNBits takes it: ``(code - zero point) * scale``.

    Two 4-bit codes, and two 4-bit zero points, share a byte, the first in the low half. Where K is no multiple of the
    block the last block is filled up with codes that stand for zero.
    """

    format: BlockFormat
    width: int  # K
    packed: Codes  # uint8 [N, blocks, block * bits / 8]
    scales: Float  # float32 [N, blocks]
    zero_points: Codes | None  # uint8 [N, ceil(blocks * bits / 8)]; None: the middle

    def codes(self) -> Codes:
        """uint8 [N, blocks, block]"""
        return unpack(self.packed, self.format.bits)

    def zeros(self) -> Codes:
        """The zero point of each block, uint8 [N, blocks]."""
        if self.zero_points is None:
            return np.full(self.scales.shape, self.format.middle, dtype=np.uint8)
        return unpack(self.zero_points, self.format.bits)[:, : self.scales.shape[1]]

    def dequantize(self) -> Float:
        """The weight that the layer multiplies by, float32 [K, N]."""
        weight = np.empty((self.width, len(self.scales)), dtype=np.float32)
        self._write(weight.T)
        return weight

    def rows(self) -> Float:
        """The transpose of it, float32 [N, K]: a row of a table is a column of a weight."""
        rows = np.empty((len(self.scales), self.width), dtype=np.float32)
        self._write(rows)
        return rows

    def _write(self, rows: Float) -> None:
        """Fill ``rows`` [N, K], a slice at a time."""
        zeros = self.zeros()
        step = max(_SLICE_ELEMENTS // (self.scales.shape[1] * self.format.block_size), _FEWEST_COLUMNS)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            steps = unpack(self.packed[part], self.format.bits).astype(np.float32)
            steps -= zeros[part, :, None]
            steps *= self.scales[part, :, None]
            rows[part] = steps.reshape(len(steps), -1)[:, : self.width]


def pack(codes: Codes, bits: int) -> Codes:
    """Codes [..., n] of ``bits`` to bytes [..., ceil(n * bits / 8)]."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), dtype=np.uint8)], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack(packed: Codes, bits: int) -> Codes:
    """Bytes [..., m] back to codes [..., m * 8 / bits]."""
    if bits == 8:
        return packed
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)


def assemble(form: BlockFormat, width: int, codes: Codes, scales: Float, zeros: Float) -> Blocks:
    """Codes [N, blocks, block], scales and zero points [N, blocks] to the packed layout."""
    zero_points = None if form.symmetric else pack(zeros.astype(np.uint8), form.bits)
    return Blocks(
        format=form, width=width, packed=pack(codes, form.bits), scales=np.ascontiguousarray(scales),
        zero_points=zero_points,
    )  # fmt: skip


def quantize_blocks(weight: Float, form: BlockFormat, method: str = "rtn") -> Blocks:
    """Quantize a weight [K, N] by a method that needs no data.

    ``rtn`` rounds to nearest after a search for the scale of each block (:func:`search_scales`); ``hqq`` goes on from
    there with the half-quadratic solver (:func:`refine_half_quadratic`). The same input gives the same bytes, whatever
    the number of cores. Any strides and any float dtype are taken; a slice at a time is copied to float32.
    """
    width, columns = weight.shape
    blocks = form.blocks(width)
    codes_width = form.block_size * form.bits // 8
    packed = np.empty((columns, blocks, codes_width), dtype=np.uint8)
    scales = np.empty((columns, blocks), dtype=np.float32)
    zeros = np.empty((columns, blocks), dtype=np.float32)
    step = max(_SLICE_ELEMENTS // (blocks * form.block_size), _FEWEST_COLUMNS)

    def work(start: int) -> None:
        stop = min(start + step, columns)
        rows = into_blocks(weight[:, start:stop], form)
        scale, zero = search_scales(rows, form)
        if method == "hqq":
            scale, zero = refine_half_quadratic(rows, scale, zero, form)
        packed[start:stop] = pack(encode(rows, scale, zero, form), form.bits)
        scales[start:stop], zeros[start:stop] = scale[:, :, 0], zero[:, :, 0]

    with ThreadPoolExecutor(host_cores()) as pool:
        for _ in pool.map(work, range(0, columns, step)):
            pass
    zero_points = None if form.symmetric else pack(zeros.astype(np.uint8), form.bits)
    return Blocks(format=form, width=width, packed=packed, scales=scales, zero_points=zero_points)


def into_blocks(weight: npt.NDArray[np.floating], form: BlockFormat) -> Float:
    """[K, n] to float32 [n, blocks, block], the last block filled up with zeros."""
    width, columns = weight.shape
    rows = np.zeros((columns, form.blocks(width) * form.block_size), dtype=np.float32)
    rows[:, :width] = weight.T
    return rows.reshape(columns, -1, form.block_size)


def encode(blocks: Float, scale: Float, zero: Float, form: BlockFormat) -> Codes:
    """The nearest codes, uint8 of the shape of ``blocks``."""
    return _steps(blocks, np.float32(1) / scale, zero, form).astype(np.uint8)


def _steps(blocks: Float, inverse: Float, zero: Float, form: BlockFormat) -> Float:
    """The nearest codes, still as floats."""
    codes = blocks * inverse
    codes += zero
    np.rint(codes, out=codes)
    return np.clip(codes, 0, form.top, out=codes)


def search_scales(blocks: Float, form: BlockFormat, importance: Float | None = None) -> tuple[Float, Float]:
    """The scale and zero point of each block with the least squared error among a handful of ranges.

    blocks [n, blocks, block] -> float32 [n, blocks, 1] each; the zero point is a whole number. For every range the
    codes are rounded and the scale, a float16, is then fitted to them by least squares, as llama.cpp's quantizers do.
    With ``importance``, [blocks, block], errors count in proportion to it. A symmetric scale may be negative, unless
    the format is ``positive``: the code 0 is one step further from the middle than the top, and the value of largest
    magnitude takes it.
    """
    best = np.full((*blocks.shape[:2], 1), -1.0, dtype=np.float32)
    best_scale = np.ones_like(best)
    best_zero = np.full_like(best, form.middle)
    for inverse, zero in _ranges(blocks, form):
        codes = _steps(blocks, inverse, zero, form)
        codes -= zero
        product, square = _moments(blocks, codes, importance)
        fitted = as_halves((product / np.maximum(square, np.float32(1e-30))).astype(np.float32))
        gain = fitted * (2 * product - fitted * square)  # the squared error is a constant less this
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(best_scale, fitted, where=better)
        np.copyto(best_zero, zero, where=better)
    best_scale[best_scale == 0] = 1.0  # a block of zeros
    return best_scale, best_zero


def as_halves(scale: Float) -> Float:
    """Each scale as the nearest float16, where float16 has all its digits; so that a kernel may keep it in two bytes.

    To be done before weights are rounded by it: then it costs a two-thousandth of a step at most. What is smaller than
    float16's normal numbers, or larger than all, stays as it is.
    """
    size = np.abs(scale)
    with np.errstate(over="ignore"):
        short = scale.astype(np.float16).astype(np.float32)
    return np.where((size >= _HALF.smallest_normal) & (size <= _HALF.max), short, scale)


def _ranges(blocks: Float, form: BlockFormat) -> Iterator[tuple[Float, Float]]:
    """Candidates: the inverse scale and the zero point, [n, blocks, 1] each."""
    reaches = _REACH_4 if form.bits == 4 else _REACH_8
    low, high = blocks.min(axis=2, keepdims=True), blocks.max(axis=2, keepdims=True)
    if form.symmetric:
        extreme = np.where(-low > high, low, high)
        extreme[extreme == 0] = 1.0
        middle = np.full_like(extreme, form.middle)
        steps = np.full_like(extreme, -form.middle)
        if form.positive:
            steps = np.where(extreme < 0, steps, np.float32(form.middle - 1))
        for reach in reaches:
            yield steps * np.float32(reach) / extreme, middle
        return
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = high - low
    span[span == 0] = 1.0
    centre = (low + high) / 2
    for reach in reaches:
        inverse = np.float32(form.top * reach) / span
        yield inverse, np.clip(np.rint(np.float32(form.top / 2) - centre * inverse), 0, form.top)


def _moments(blocks: Float, steps: Float, importance: Float | None = None) -> tuple[Float, Float]:
    """Sums of blocks * steps and of steps ** 2 over each block, [n, blocks, 1]."""
    weighted = steps if importance is None else steps * importance
    product = np.einsum("ngb,ngb->ng", blocks, weighted)
    square = np.einsum("ngb,ngb->ng", steps, weighted)
    return product[:, :, None], square[:, :, None]


def refine_half_quadratic(blocks: Float, scale: Float, zero: Float, form: BlockFormat) -> tuple[Float, Float]:
    """HQQ (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023).

    Minimizes the l_p norm, p = 0.7, of the error: a few large errors are left to be large, and the many small ones
    shrink. The error is split off by the generalized soft threshold, and the scale and the zero point are fitted to the
    rest in closed form, in turn. Two things differ from the authors' code: MatMulNBits computes fast with whole zero
    points only, so the zero point moves by whole steps and the scale is fitted too (for symmetric blocks it alone); and
    errors are measured in steps, so that one beta serves weights of any magnitude. The best iterate of each block is
    kept, so no block gets worse than it came.
    """
    best_scale, best_zero = scale.copy(), zero.copy()
    best = np.full_like(scale, np.inf)
    beta = _BETA
    for _ in range(_ITERATIONS):
        steps = _steps(blocks, np.float32(1) / scale, zero, form)
        steps -= zero
        error = blocks - steps * scale
        magnitude = np.abs(error)
        unit = np.abs(scale)
        power = np.power(magnitude / unit + np.float32(1e-8), np.float32(_LP_NORM - 1))
        # |e|^p of the error itself; its factor of the scale is put back, because the scale is what changes.
        norm = np.einsum("ngb,ngb->ng", magnitude, power)[:, :, None] * np.power(unit, np.float32(_LP_NORM - 1))
        better = norm < best
        if not better.any():
            break
        np.copyto(best, norm, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_zero, zero, where=better)
        kept = np.maximum(magnitude - power * (unit / np.float32(beta)), 0)
        target = blocks - np.copysign(kept, error)
        if not form.symmetric:
            moved = zero + (steps - target / scale).mean(axis=2, keepdims=True)
            moved = np.clip(np.rint(moved), 0, form.top)
            steps += zero - moved
            zero = moved
        product, square = _moments(target, steps)
        fitted = product / np.maximum(square, 1e-30)
        scale = as_halves(np.where((fitted != 0) & (square > 0), fitted, scale).astype(np.float32))
        beta *= _KAPPA
    return best_scale, best_zero
