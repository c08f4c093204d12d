"""Rounds weights in blocks that share one scale (:mod:`edgecompress.graph.blocks`).

Round to nearest and the half-quadratic solver need only the weight and are here; GPTQ, which also needs activations, is
in :mod:`edgecompress.quantize.gptq`. Everything is NumPy in float32. Work is done in slices of output columns, so the
memory beyond the weight and the result is a few megabytes, even for a vocabulary of 150,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgecompress.formats.cpu import host_cores
from edgecompress.graph.blocks import FEWEST_COLUMNS, SLICE_ELEMENTS, BlockFormat, Blocks, Codes, pack
from edgecompress.types.arrays import FloatArray

# Factors on the inverse scale that are tried: 1 makes the range end at a block's extreme value, above 1 clips it.
_REACH_4 = (1.0, 0.875, 0.92, 0.96, 1.04, 1.09, 1.15, 1.22, 1.31, 1.42)
_REACH_8 = (1.0,)  # with 256 levels, clipping never pays

_HALF = np.finfo(np.float16)

_LP_NORM = 0.7  # of the half-quadratic solver, like the next two lines; the authors' settings
_BETA, _KAPPA = 10.0, 1.01
_ITERATIONS = 20


def quantize_blocks(weight: FloatArray, form: BlockFormat, method: str = "rtn") -> Blocks:
    """Quantize a weight [K, N] by a method that needs no data.

    ``rtn`` rounds to nearest after searching the scale of each block (:func:`search_scales`); ``hqq`` continues from
    there with the half-quadratic solver (:func:`refine_half_quadratic`). Equal inputs give equal bytes on any number of
    cores. The weight may have any strides and any float dtype; one slice at a time is copied to float32.
    """
    width, columns = weight.shape
    blocks = form.blocks(width)
    codes_width = form.block_size * form.bits // 8
    packed = np.empty((columns, blocks, codes_width), dtype=np.uint8)
    scales = np.empty((columns, blocks), dtype=np.float32)
    zeros = np.empty((columns, blocks), dtype=np.float32)
    step = max(SLICE_ELEMENTS // (blocks * form.block_size), FEWEST_COLUMNS)

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


def into_blocks(weight: npt.NDArray[np.floating], form: BlockFormat) -> FloatArray:
    """[K, n] to float32 [n, blocks, block], with the last block padded with zeros."""
    width, columns = weight.shape
    rows = np.zeros((columns, form.blocks(width) * form.block_size), dtype=np.float32)
    rows[:, :width] = weight.T
    return rows.reshape(columns, -1, form.block_size)


def encode(blocks: FloatArray, scale: FloatArray, zero: FloatArray, form: BlockFormat) -> Codes:
    """The nearest codes, uint8 of the shape of ``blocks``."""
    return _steps(blocks, np.float32(1) / scale, zero, form).astype(np.uint8)


def _steps(blocks: FloatArray, inverse: FloatArray, zero: FloatArray, form: BlockFormat) -> FloatArray:
    """The nearest codes, still as floats."""
    codes = blocks * inverse
    codes += zero
    np.rint(codes, out=codes)
    return np.clip(codes, 0, form.top, out=codes)


def search_scales(
    blocks: FloatArray, form: BlockFormat, importance: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """The scale and zero point of each block with the least squared error among up to ten ranges.

    blocks [n, blocks, block] -> float32 [n, blocks, 1] each; the zero point is an integer. For each range, codes are
    rounded first and then the scale, a float16 number, is fitted to them by least squares, as in llama.cpp. With
    ``importance`` [blocks, block], errors are weighted by it. A symmetric scale may be negative, unless the format has
    ``positive_scales``: code 0 is one step further from the middle than the top code, and the value of largest
    magnitude takes code 0.
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


def as_halves(scale: FloatArray) -> FloatArray:
    """Round each scale to float16, so that a kernel can store it in two bytes.

    Call this before rounding weights with the scale; it then costs at most 1/2000 of a step. Scales below float16's
    normal numbers or above its range stay unchanged.
    """
    size = np.abs(scale)
    with np.errstate(over="ignore"):
        short = scale.astype(np.float16).astype(np.float32)
    return np.where((size >= _HALF.smallest_normal) & (size <= _HALF.max), short, scale)


def _ranges(blocks: FloatArray, form: BlockFormat) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Candidates: the inverse scale and the zero point, [n, blocks, 1] each."""
    reaches = _REACH_4 if form.bits == 4 else _REACH_8
    low, high = blocks.min(axis=2, keepdims=True), blocks.max(axis=2, keepdims=True)
    if form.symmetric:
        extreme = np.where(-low > high, low, high)
        extreme[extreme == 0] = 1.0
        middle = np.full_like(extreme, form.middle)
        steps = np.full_like(extreme, -form.middle)
        if form.positive_scales:
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


def _moments(
    blocks: FloatArray, steps: FloatArray, importance: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Sums of blocks * steps and of steps ** 2 over each block, [n, blocks, 1]."""
    weighted = steps if importance is None else steps * importance
    product = np.einsum("ngb,ngb->ng", blocks, weighted)
    square = np.einsum("ngb,ngb->ng", steps, weighted)
    return product[:, :, None], square[:, :, None]


def refine_half_quadratic(
    blocks: FloatArray, scale: FloatArray, zero: FloatArray, form: BlockFormat
) -> tuple[FloatArray, FloatArray]:
    """HQQ (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023).

    Minimizes the l_p norm, p = 0.7, of the error, which accepts a few large errors to shrink the many small ones. In
    turn, the generalized soft threshold splits off the error, and the scale and zero point are fitted to the rest in
    closed form. Two things differ from the authors' code: MatMulNBits is fast only with integer zero points, so the
    zero point moves by whole steps and the scale is fitted too (in symmetric blocks only the scale); and errors are
    measured in steps, so that one beta suits weights of any magnitude. Each block keeps its best iterate, so none gets
    worse.
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
        # |e|^p of the unscaled error: multiply the scale back in, because the scale changes.
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
