"""Is the captured graph the student? Checked on every export, before anything is quantized.

The exporter can write a graph that loads and is wrong (a dynamic axis taken for another one, as it does with MPNet's
position bias): such a student is refused here, with no figure for anything made from it.
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

TOLERANCE = 1e-3  # of the largest output; float32 sums in another order differ by about 1e-6


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
    """Return the largest difference to PyTorch at real (not padded) positions.

    Raises StudentError if it is beyond TOLERANCE, or if the graph does not run.
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
        hint="The exporter does not get this architecture right; it is not supported by this version.",
    )
