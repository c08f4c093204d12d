"""Packs MatMulNBits' weights for the kernels of blockwise.py. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
TILE = 16  # adjacent outputs per vector


def pack_weights(packed: Bytes, bits: int) -> Bytes:
    """uint8 [N, blocks, block * bits / 8], low nibble first, -> uint8 [tiles, blocks, block * bits / 32, 64].

    Outputs past N are zero. Raises ValueError if bits is neither 4 nor 8.
    """
    if bits not in (4, 8):
        raise ValueError(f"weights have 4 or 8 bits, not {bits}")
    outputs, blocks, width = packed.shape
    tiles = -(-outputs // TILE)
    full = np.zeros((tiles * TILE, blocks, width), dtype=np.uint8)
    full[:outputs] = packed
    if bits == 4:
        # A vector holds eight inputs per output: four in the low nibbles of its four bytes, four in the high nibbles.
        eight = full.reshape(tiles, TILE, blocks, width // 4, 4)
        first, second = eight[..., :2], eight[..., 2:]  # inputs 0-3 and 4-7, two per byte
        low = np.stack([first & 15, first >> 4], axis=-1).reshape(*first.shape[:-1], 4)
        high = np.stack([second & 15, second >> 4], axis=-1).reshape(*first.shape[:-1], 4)
        four = low | (high << 4)
    else:
        four = full.reshape(tiles, TILE, blocks, width // 4, 4)
    return np.ascontiguousarray(four.transpose(0, 2, 3, 1, 4)).reshape(tiles, blocks, width // 4, 4 * TILE)


def pack_lanes(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[N, blocks] -> [tiles, blocks, 16] of the same dtype: scales, or zero points, one per byte."""
    outputs, blocks = values.shape
    tiles = -(-outputs // TILE)
    full = np.zeros((tiles * TILE, blocks), dtype=values.dtype)
    full[:outputs] = values
    return np.ascontiguousarray(full.reshape(tiles, TILE, blocks).transpose(0, 2, 1))
