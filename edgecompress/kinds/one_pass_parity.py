"""Compares the captured graph with the student, on every export, before anything is quantized.

The exporter can write a graph that loads but is wrong, for example by confusing two dynamic axes, as in MPNet's
position bias. Such a student is rejected here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import StudentError
from edgecompress.kinds.one_pass_feeds import stack
from edgecompress.types.arrays import Feed
from edgecompress.types.student import Student

TOLERANCE = 1e-3  # relative to the largest output; another summation order in float32 differs by about 1e-6


def parity_feeds(feeds: Sequence[Feed], pad_token_id: int) -> list[Feed]:
    """A single sample, and a batch of two whose shorter one is padded."""
    first, second = feeds[0], feeds[min(1, len(feeds) - 1)]
    longer = second["input_ids"].shape[1] + 3 if "input_ids" in first else 0
    return [first, stack([first, second], pad_token_id, at_least=longer)]


def require_parity(
    student: Student,
    run: Callable[[Feed], Sequence[npt.NDArray[Any]]],
    feeds: Sequence[Feed],
    reference: Sequence[Sequence[npt.NDArray[Any]]],
) -> float:
    """Return the largest difference from PyTorch at unpadded positions.

    Raises StudentError if it exceeds TOLERANCE, or if the graph does not run.
    """
    largest = 0.0
    for feed, expected in zip(feeds, reference, strict=True):
        try:
            outputs = run(feed)
        except Exception as error:  # ONNX Runtime raises its own classes
            raise _refusal(student, "does not run with other batch sizes and lengths") from error
        for a, b in zip(expected, outputs, strict=True):
            if a.shape != b.shape:
                raise _refusal(student, f"gives shape {b.shape} where PyTorch gives {a.shape}")
            mask = feed.get("attention_mask")
            if mask is not None and a.shape[:2] == mask.shape:
                a, b = a[mask.astype(bool)], b[mask.astype(bool)]
            difference = float(np.abs(a.astype(np.float64) - b).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(a).max())):
                raise _refusal(student, f"differs from PyTorch by {difference:.2g}")
            largest = max(largest, difference)
    return largest


def _refusal(student: Student, what: str) -> StudentError:
    return StudentError(
        f"the captured graph of architecture '{student.architecture}' {what}",
        hint="This version does not support the architecture; see `edgecompress architectures` for those it does.",
    )
