"""Packs int8 matrices for ``encoder_linear``. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress_kernels.cpu.abi import PANEL


def pack_panels(weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """int8 [inputs, outputs] -> [panels, inputs / 4, 48, 4]; outputs past the last are zero."""
    inputs, outputs = weights.shape
    panels = -(-outputs // PANEL)
    full = np.zeros((inputs, panels * PANEL), dtype=np.int8)
    full[:, :outputs] = weights
    return np.ascontiguousarray(full.reshape(inputs // 4, 4, panels, PANEL).transpose(2, 0, 3, 1))


def pack_columns(weights: npt.NDArray[np.int8], scales: npt.NDArray[Any], bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scales and bias [outputs] of weights int8 [inputs, outputs] -> float32 [panels, 3, 48]: scale, offset, bias.

    The offset is the factor of a row's low: the sum of an output's weights, times its scale.
    """
    outputs = weights.shape[1]
    panels = -(-outputs // PANEL)
    full = np.zeros((3, panels * PANEL), dtype=np.float32)
    full[0, :outputs] = scales
    full[1, :outputs] = scales.astype(np.float64) * weights.sum(0, dtype=np.int64)
    full[2, :outputs] = bias
    return np.ascontiguousarray(full.reshape(3, panels, PANEL).transpose(1, 0, 2))
