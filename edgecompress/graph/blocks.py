"""Block-wise quantized weights, in the layout of com.microsoft::MatMulNBits. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecompress.types.arrays import FloatArray

Codes = npt.NDArray[np.uint8]

SLICE_ELEMENTS = 1 << 18  # 1 MiB of float32, so that a slice's temporaries stay in cache
FEWEST_COLUMNS = 64  # per slice; fewer would waste cache lines of a [K, N] matrix


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How a weight is stored: 4 or 8 bits, inputs per block, and whether each block has its own zero point."""

    bits: int
    block_size: int
    symmetric: bool = True
    positive_scales: bool = False  # if symmetric: no scale is negative

    @property
    def top(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point if none is stored."""
        return int(2 ** (self.bits - 1))

    def blocks(self, width: int) -> int:
        return -(-width // self.block_size)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A weight [K, N] of ``y = x @ weight`` in MatMulNBits' layout: ``(code - zero point) * scale``.

    Two 4-bit codes or zero points share a byte, the first in the low half. If K is not a multiple of the block size,
    the last block is padded with codes for zero.
    """

    format: BlockFormat
    width: int  # K
    packed: Codes  # uint8 [N, blocks, block * bits / 8]
    scales: FloatArray  # float32 [N, blocks]
    zero_points: Codes | None  # uint8 [N, ceil(blocks * bits / 8)]; None: the middle

    def codes(self) -> Codes:
        """uint8 [N, blocks, block]"""
        return unpack(self.packed, self.format.bits)

    def zeros(self) -> Codes:
        """The zero point of each block, uint8 [N, blocks]."""
        if self.zero_points is None:
            return np.full(self.scales.shape, self.format.middle, dtype=np.uint8)
        return unpack(self.zero_points, self.format.bits)[:, : self.scales.shape[1]]

    def dequantize(self) -> FloatArray:
        """The weight that the layer multiplies by, float32 [K, N]."""
        weight = np.empty((self.width, len(self.scales)), dtype=np.float32)
        self._write(weight.T)
        return weight

    def rows(self) -> FloatArray:
        """The transposed weight, float32 [N, K]: rows of a table are columns of a weight."""
        rows = np.empty((len(self.scales), self.width), dtype=np.float32)
        self._write(rows)
        return rows

    def _write(self, rows: FloatArray) -> None:
        """Fill ``rows`` [N, K], a slice at a time."""
        zeros = self.zeros()
        step = max(SLICE_ELEMENTS // (self.scales.shape[1] * self.format.block_size), FEWEST_COLUMNS)
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


def assemble(form: BlockFormat, width: int, codes: Codes, scales: FloatArray, zeros: FloatArray) -> Blocks:
    """Pack codes [N, blocks, block] with scales and zero points [N, blocks]."""
    zero_points = None if form.symmetric else pack(zeros.astype(np.uint8), form.bits)
    return Blocks(
        format=form, width=width, packed=pack(codes, form.bits), scales=np.ascontiguousarray(scales),
        zero_points=zero_points,
    )  # fmt: skip
