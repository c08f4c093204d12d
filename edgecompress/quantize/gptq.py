"""GPTQ (Frantar et al., arXiv 2210.17323): weights that are not rounded yet compensate the errors of rounded ones.

With the Hessian ``H = X^T X`` of a layer's inputs, rounding the weights of one input channel changes the output least
if the later channels move by a step that follows from ``H`` in closed form. It is computed in the form of LDLQ (Chee et
al., "QuIP", arXiv 2307.13304, who show that both are equivalent): from ``H = R R^T`` with R upper triangular, channel k
moves by the drift of every earlier channel j, times ``R[j, k] / R[k, k]``. No inverse is formed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from edgecompress.formats.cpu import host_cores
from edgecompress.graph.blocks import BlockFormat, Blocks, Codes, assemble
from edgecompress.quantize.blockwise import into_blocks, search_scales
from edgecompress.types.arrays import FloatArray

DAMPING = 0.01  # share of the mean of the Hessian's diagonal that is added to the diagonal

_BATCHES = (512, 64)  # channels whose drift moves the rest of the next larger batch in one product
_SLICE_COLUMNS = 4096  # output columns at a time; they are independent of each other


def gptq(weight: FloatArray, hessian: FloatArray, form: BlockFormat, *, damping: float = DAMPING) -> Blocks:
    """Quantize a weight [K, N] whose inputs have the Hessian float32 [K, K] (any positive multiple of X^T X).

    Channels with the largest activations go first ("act order"). The scales are fixed beforehand from the original
    weight, with errors weighted by the Hessian's diagonal, because MatMulNBits needs blocks of neighbouring channels
    ("static groups"). A channel that is always zero is rounded to nearest.

    Equal inputs give equal bytes on one machine; another number of BLAS threads may sum in another order. Raises
    ValueError if the shapes do not match or the Hessian is not finite.
    """
    width, columns = weight.shape
    if hessian.shape != (width, width):
        raise ValueError(f"the Hessian has shape {hessian.shape}, but the layer has {width} inputs")
    importance = np.zeros((form.blocks(width), form.block_size), dtype=np.float32)
    importance.reshape(-1)[:width] = _positive(np.diagonal(hessian))
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    upper = feedback(hessian, damping, order)
    codes = np.full((columns, form.blocks(width) * form.block_size), form.middle, dtype=np.uint8)
    scales = np.empty((columns, form.blocks(width)), dtype=np.float32)
    zeros = np.empty_like(scales)
    step = min(_SLICE_COLUMNS, -(-columns // host_cores()))

    def work(start: int) -> None:
        part = slice(start, start + step)
        found, scale, zero = _sweep(weight[:, part].astype(np.float32), upper, order, importance, form)
        codes[part, :width] = found.T
        scales[part], zeros[part] = scale.T, zero.T

    with ThreadPoolExecutor(host_cores()) as pool:
        for _ in pool.map(work, range(0, columns, step)):
            pass
    blocks = codes.reshape(columns, -1, form.block_size)
    if not form.symmetric and width % form.block_size:
        # Pad the last block with codes for zero.
        blocks[:, -1, width % form.block_size :] = zeros[:, -1:].astype(np.uint8)
    return assemble(form, width, blocks, scales, zeros)


def _positive(diagonal: FloatArray) -> FloatArray:
    """The diagonal as error weights, with a floor above zero."""
    floor = np.float32(max(float(diagonal.mean()) * 1e-6, 1e-30))
    return np.maximum(diagonal, floor).astype(np.float32)


def _sweep(
    weight: FloatArray, upper: FloatArray, order: npt.NDArray[np.intp], importance: FloatArray, form: BlockFormat
) -> tuple[Codes, FloatArray, FloatArray]:
    """Round ``weight`` [K, n]; return codes [K, n], scales and zero points [blocks, n].

    ``upper`` is in ``order``, the rest in the layer's own order.
    """
    width, columns = weight.shape
    codes = np.empty((width, columns), dtype=np.uint8)
    found = search_scales(into_blocks(weight, form), form, importance)
    scales, zeros = (np.ascontiguousarray(values[:, :, 0].T) for values in found)
    drift = weight[order]  # per rounded channel: weight before rounding minus weight after
    moved = drift.copy()
    scratch = np.empty((_BATCHES[-1], columns), dtype=np.float32)

    def work(first: int, last: int, sizes: tuple[int, ...]) -> None:
        if not sizes:
            for i in range(first, last):
                group = int(order[i]) // form.block_size
                code = np.rint(moved[i] / scales[group] + zeros[group])
                np.clip(code, 0, form.top, out=code)
                codes[order[i]] = code
                drift[i] -= (code - zeros[group]) * scales[group]
                moved[i + 1 : last] += np.multiply(upper[i, i + 1 : last, None], drift[i], out=scratch[: last - i - 1])
            return
        for start in range(first, last, sizes[0]):
            stop = min(start + sizes[0], last)
            work(start, stop, sizes[1:])
            if stop < last:
                moved[stop:last] += upper[start:stop, stop:last].T @ drift[start:stop]

    work(0, width, _BATCHES)
    return codes, scales, zeros


def feedback(hessian: FloatArray, damping: float, order: npt.NDArray[np.intp] | None = None) -> FloatArray:
    """How far each channel's drift moves later ones: float32 [K, K], upper triangular with ones on the diagonal.

    R is the Cholesky factor of the damped matrix rotated by 180 degrees; each column is divided by its diagonal. If
    float32 is not precise enough for the given damping, the damping is raised tenfold until it is. Channels are taken
    in ``order``, if it is given. Computed in PyTorch, which uses all cores.
    """
    whole = torch.from_numpy(hessian)
    diagonal = whole.diagonal()
    mean = float(diagonal.mean()) or 1.0
    if not np.isfinite(mean) or not bool(torch.isfinite(whole).all()):
        raise ValueError("the Hessian holds values that are not finite")
    backwards = torch.from_numpy(np.arange(len(hessian))[::-1].copy() if order is None else order[::-1].copy())
    turned = whole.index_select(0, backwards).index_select(1, backwards)
    empty = diagonal.index_select(0, backwards) <= 0
    while True:
        turned.diagonal().copy_(diagonal.index_select(0, backwards) + float(np.float32(damping * mean)))
        turned.diagonal()[empty] = mean
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not int(failed):
            break
        damping *= 10
    del turned
    upper = lower.flip(0, 1)
    upper /= upper.diagonal().clone()
    return upper.numpy()  # type: ignore[no-any-return]
