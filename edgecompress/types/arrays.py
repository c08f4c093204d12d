"""Array types, with names for signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

Feed = Mapping[str, Array]
"""A model's inputs by name."""

Batches = Callable[[], Iterable[Feed]]
"""Feeds that can be iterated more than once."""

Run = Callable[[Feed], Sequence[Array]]
"""A model as a function from its inputs to its outputs."""
