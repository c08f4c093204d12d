"""GPTQ (Frantar et al., arXiv 2210.17323): the error of each weight is made up for by those not rounded yet.

With the Hessian ``H = X^T X`` of a layer's inputs, rounding the weights of one input channel changes the output least
if the channels behind it move by a step that the inverse of ``H`` gives in closed form. Channels are taken in turn;
the updates of a batch of channels reach the rest of the matrix as one product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecompress.quantize.blockwise import BlockFormat, Blocks, Codes, assemble, into_blocks, search_scales
from edgecompress.quantize.numerics import Float

DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it

_BATCH = 64  # channels between two products over the rest of the matrix
_SLICE_COLUMNS = 4096  # output columns at a time: they do not depend on each other
_TRIANGLE = 256  # up to this size a triangle is inverted by LAPACK


def gptq(
    weight: Float, hessian: Float, form: BlockFormat, *, damping: float = DAMPING, act_order: bool = True
) -> Blocks:
    """Quantize a weight [K, N] whose inputs have the Hessian float32 [K, K] (any positive multiple of X^T X).

    ``act_order`` takes the channels of largest activation first; the scales are then fixed beforehand, from the weight
    as it came, because MatMulNBits wants blocks of neighbouring channels ("static groups"). Without it a block's scale
    is fitted when its turn comes, to the weights as the earlier channels have moved them. Either way errors are weighed
    by the Hessian's diagonal. A channel that never was anything but zero is rounded to nearest.

    Bytes repeat for the same inputs on the same machine; another number of BLAS threads may sum in another order.
    Raises ValueError if the shapes do not fit or the Hessian is not finite.
    """
    width, columns = weight.shape
    if hessian.shape != (width, width):
        raise ValueError(f"the Hessian is {hessian.shape}, and the layer has {width} inputs")
    importance = np.zeros((form.blocks(width), form.block_size), dtype=np.float32)
    importance.reshape(-1)[:width] = _positive(np.diagonal(hessian))
    order = np.argsort(-np.diagonal(hessian), kind="stable") if act_order else np.arange(width)
    factor = inverse_factor(hessian[np.ix_(order, order)], damping)
    codes = np.full((columns, form.blocks(width) * form.block_size), form.middle, dtype=np.uint8)
    scales = np.empty((columns, form.blocks(width)), dtype=np.float32)
    zeros = np.empty_like(scales)
    for start in range(0, columns, _SLICE_COLUMNS):
        part = slice(start, start + _SLICE_COLUMNS)
        rows = weight[:, part].astype(np.float32)  # a copy: it is worked on in place
        found, scale, zero = _sweep(rows, factor, order, importance, form, static=act_order)
        codes[part, :width] = found.T
        scales[part], zeros[part] = scale.T, zero.T
    blocks = codes.reshape(columns, -1, form.block_size)
    if not form.symmetric and width % form.block_size:
        # What fills up the last block stands for zero.
        blocks[:, -1, width % form.block_size :] = zeros[:, -1:].astype(np.uint8)
    return assemble(form, width, blocks, scales, zeros)


def _positive(diagonal: npt.NDArray[np.float32]) -> Float:
    """The diagonal as weights for the errors: never all zero."""
    floor = np.float32(max(float(diagonal.mean()) * 1e-6, 1e-30))
    return np.maximum(diagonal, floor).astype(np.float32)


def _sweep(
    weight: Float, factor: Float, order: npt.NDArray[np.intp], importance: Float, form: BlockFormat, *, static: bool
) -> tuple[Codes, Float, Float]:
    """Round ``weight`` [K, n], which is used up; return codes [K, n], scales and zero points [blocks, n].

    ``factor`` is in ``order``, the rest in the layer's own order.
    """
    width, columns = weight.shape
    block = form.block_size
    codes = np.empty((width, columns), dtype=np.uint8)
    scales = np.empty((form.blocks(width), columns), dtype=np.float32)
    zeros = np.empty_like(scales)
    if static:
        scale, zero = search_scales(into_blocks(weight, form), form, importance)
        scales[:], zeros[:] = scale[:, :, 0].T, zero[:, :, 0].T
        weight = weight[order]
    errors = np.empty((_BATCH, columns), dtype=np.float32)
    scratch = np.empty((_BATCH, columns), dtype=np.float32)
    for start in range(0, width, _BATCH):
        stop = min(start + _BATCH, width)
        for i in range(start, stop):
            group = int(order[i]) // block
            if not static and i % block == 0:
                scale, zero = search_scales(
                    into_blocks(weight[i : i + block], form), form, importance[group : group + 1]
                )
                scales[group], zeros[group] = scale[:, 0, 0], zero[:, 0, 0]
            scale_row, zero_row, error = scales[group], zeros[group], errors[i - start]
            code = np.clip(np.rint(weight[i] / scale_row + zero_row), 0, form.top)
            codes[order[i]] = code
            np.subtract(weight[i], (code - zero_row) * scale_row, out=error)
            error /= factor[i, i]
            if i + 1 < stop:
                update = np.multiply(factor[i, i + 1 : stop, None], error, out=scratch[: stop - i - 1])
                weight[i + 1 : stop] -= update
        if stop < width:
            weight[stop:] -= factor[start:stop, stop:].T @ errors[: stop - start]
    return codes, scales, zeros


def inverse_factor(hessian: Float, damping: float) -> Float:
    """The upper triangular U, float32 [K, K], with ``U^T U = (H + damping)^-1``.

    From ``H = R R^T`` with R upper triangular, which is the Cholesky factor of the matrix turned by 180 degrees, U is
    the inverse of R: the inverse of H itself, with the square of its condition, is never formed. Where float32 does not
    suffice for the damping given, ten times as much is tried, and so on.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("the Hessian holds values that are not finite")
    diagonal = np.diagonal(hessian)
    mean = float(diagonal.mean()) or 1.0
    while True:
        damped = hessian[::-1, ::-1].copy()
        index = np.arange(len(damped))
        damped[index, index] += np.float32(damping * mean)
        damped[index[diagonal[::-1] <= 0], index[diagonal[::-1] <= 0]] = np.float32(mean)
        try:
            lower = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        upper = np.ascontiguousarray(lower[::-1, ::-1])
        del damped, lower
        _invert_upper(upper)
        return upper


def _invert_upper(matrix: Float) -> None:
    """Invert an upper triangular matrix in place, by halves: nearly all of it is matrix products."""
    size = len(matrix)
    if size <= _TRIANGLE:
        matrix[:] = np.triu(np.linalg.inv(matrix))
        return
    half = size // 2
    left, right, corner = matrix[:half, :half], matrix[half:, half:], matrix[:half, half:]
    _invert_upper(left)
    _invert_upper(right)
    corner[:] = -(left @ corner) @ right
